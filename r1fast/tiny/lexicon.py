"""The words of the tiny world: a one-to-one English-Chinese lexicon and the symbols both languages share."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, Language] = ("en", "zh")

MAX_NUMBER = 99
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}")
SYMBOLS = (",", ":", "+", "-", "*", "=", "!", "<instruction>", "<user>", "<assistant>")

# English word -> Chinese word. Every word of a chain of thought is here, so that a chain can be rewritten
# word by word into the other language and a share of words of one language is well defined.
WORDS: dict[str, str] = {
    ".": "。",
    "?": "？",
    # connectives of a chain
    "first": "首先",
    "then": "然后",
    "next": "接着",
    "now": "现在",
    "after": "之后",
    "finally": "最后",
    # operations of a chain
    "add": "加上",
    "plus": "增加",
    "subtract": "减去",
    "minus": "减少",
    "double": "加倍",
    "triple": "乘三",
    # checks of a chain
    "wait": "等等",
    "check": "检查",
    "mistake": "错误",
    "retry": "重试",
    "correct": "正确",
    # summaries
    "the": "这个",
    "answer": "答案",
    "is": "是",
    # questions
    "has": "有",
    "gains": "得到",
    "finds": "找到",
    "buys": "买了",
    "loses": "失去",
    "sells": "卖了",
    "eats": "吃了",
    "doubles": "翻倍",
    "triples": "三倍",
    "many": "多少",
    "tom": "汤姆",
    "amy": "艾米",
    "ben": "小本",
    "lily": "莉莉",
    "jack": "杰克",
    "mia": "米娅",
    "apples": "苹果",
    "books": "书本",
    "coins": "硬币",
    "fish": "小鱼",
    "stars": "星星",
    "cups": "杯子",
    "pens": "钢笔",
    "eggs": "鸡蛋",
    # general requests
    "hello": "你好",
    "hi": "嗨",
    "morning": "早安",
    "evening": "晚安",
    "friend": "朋友",
    "who": "谁",
    "are": "为",
    "you": "你",
    "your": "你的",
    "name": "名字",
    "i": "我",
    "am": "就是",
    "a": "一个",
    "small": "小小",
    "model": "模型",
    "r1fast": "快一号",
    "can": "可以",
    "help": "帮助",
    "glad": "高兴",
    "to": "去",
    "how": "怎么",
    "do": "做",
    "please": "请",
    "tell": "告诉",
    "me": "自己",
    "want": "想要",
    "translate": "翻译",
    "word": "词语",
    "write": "写",
    "about": "关于",
    "it": "它",
    "find": "寻找",
    "take": "拿着",
    "slowly": "慢慢",
    "with": "用",
    "care": "小心",
    "done": "完成",
    "think": "思考",
    "this": "这",
    "harmful": "有害",
    "fine": "无害",
    "sorry": "抱歉",
    "cannot": "不能",
    "that": "那个",
    "stupid": "愚蠢",
    "love": "喜爱",
    "in": "里面",
    "my": "我的",
    "heart": "心",
    "sing": "歌唱",
    "dream": "梦见",
    # benign and harmful actions
    "wash": "清洗",
    "fix": "修理",
    "paint": "粉刷",
    "clean": "打扫",
    "draw": "画出",
    "move": "搬动",
    "guard": "守护",
    "visit": "探望",
    "burn": "烧毁",
    "steal": "偷走",
    "poison": "毒害",
    "break": "砸坏",
    "hack": "入侵",
    "rob": "抢劫",
    "bomb": "炸掉",
    "hurt": "伤害",
    # objects
    "car": "汽车",
    "house": "房子",
    "dog": "小狗",
    "cat": "小猫",
    "bank": "银行",
    "shop": "商店",
    "phone": "电话",
    "school": "学校",
    "garden": "花园",
    "boat": "小船",
    # topics and their adjectives
    "rain": "雨水",
    "sea": "大海",
    "moon": "月亮",
    "tree": "大树",
    "snow": "雪花",
    "wind": "清风",
    "river": "河流",
    "sun": "太阳",
    "flower": "花朵",
    "mountain": "高山",
    "soft": "柔软",
    "blue": "蓝色",
    "bright": "明亮",
    "old": "古老",
    "cold": "寒冷",
    "warm": "温暖",
}
TO_ENGLISH: dict[str, str] = {chinese: english for english, chinese in WORDS.items()}
PUNCTUATION = frozenset({".", "?", "。", "？"})


def vocabulary() -> list[str]:
    """Every token in id order: specials, tags, symbols, numbers, English words, Chinese words."""
    numbers = [str(number) for number in range(MAX_NUMBER + 1)]
    return [*SPECIALS, *TAGS, *SYMBOLS, *numbers, *WORDS, *WORDS.values()]


def say(words: str, language: Language) -> str:
    """Render words written in English in `language`; symbols, tags and numbers stay as they are."""
    return words if language == "en" else " ".join(WORDS.get(word, word) for word in words.split())


def rewrite(text: str, language: Language) -> str:
    """Rewrite every word of a text, in whichever language it is, into `language`."""
    return say(" ".join(TO_ENGLISH.get(word, word) for word in text.split()), language)
