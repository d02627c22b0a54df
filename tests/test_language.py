"""The language reward on a labelled set: eight languages, sentences as chains of thought have them, and mixtures."""

from __future__ import annotations

import pytest

from r1fast.rewards.language import SUPPORTED, has_words, language_share

# Sentences of a chain of thought in each language, formulas and numbers between the words.
LABELLED = {
    "en": """First, we add the two numbers and get 22.
        The train travels 60 miles in one hour, so it needs three hours for the whole distance.
        Let x be the number of apples that Tom buys on Monday.
        Wait, that cannot be right because the sum must be even.
        There are only four possible choices for the last digit.
        Multiplying both sides by $x+1$ gives a quadratic equation.
        Hence every term of the sequence is divisible by seven.
        Let me check the result by substituting it back.""",
    "es": """Primero sumamos los dos números y obtenemos 22.
        El tren recorre 60 millas en una hora, así que necesita tres horas para toda la distancia.
        Sea x el número de manzanas que Tomás compra el lunes.
        Espera, eso no puede ser correcto porque la suma debe ser par.
        Solo hay cuatro opciones posibles para el último dígito.
        Multiplicando ambos lados por $x+1$ se obtiene una ecuación cuadrática.
        Por lo tanto, cada término de la sucesión es divisible por siete.
        Vamos a comprobar el resultado sustituyéndolo de nuevo.""",
    "fr": """D'abord, nous additionnons les deux nombres et nous obtenons 22.
        Le train parcourt 60 kilomètres en une heure, il lui faut donc trois heures pour toute la distance.
        Soit x le nombre de pommes que Thomas achète le lundi.
        Attends, cela ne peut pas être juste car la somme doit être paire.
        Il n'y a que quatre choix possibles pour le dernier chiffre.
        En multipliant les deux membres par $x+1$ on obtient une équation du second degré.
        Donc chaque terme de la suite est divisible par sept.
        Vérifions le résultat en le remplaçant dans l'équation.""",
    "de": """Zuerst addieren wir die beiden Zahlen und erhalten 22.
        Der Zug fährt 60 Kilometer in einer Stunde, also braucht er drei Stunden für die ganze Strecke.
        Sei x die Anzahl der Äpfel, die Thomas am Montag kauft.
        Moment, das kann nicht stimmen, weil die Summe gerade sein muss.
        Es gibt nur vier Möglichkeiten für die letzte Ziffer.
        Multiplizieren wir beide Seiten mit $x+1$, so erhalten wir eine quadratische Gleichung.
        Daher ist jedes Glied der Folge durch sieben teilbar.
        Wir prüfen das Ergebnis, indem wir es wieder einsetzen.""",
    "zh": """首先，我们把两个数相加，得到 22。
        火车每小时行驶六十公里，所以走完全程需要三个小时。
        设 x 为汤姆星期一买的苹果数量。
        等等，这不可能是对的，因为总和必须是偶数。
        最后一位数字只有四种可能的选择。
        两边同时乘以 $x+1$ 得到一个二次方程。
        因此数列的每一项都能被七整除。
        让我们把结果代入原方程来检验。""",
    "ja": """まず、二つの数を足すと 22 になります。
        電車は一時間に六十キロ走るので、全部の距離には三時間かかります。
        月曜日にトムが買ったりんごの数を x とします。
        待って、合計は偶数でなければならないので、これは正しくありません。
        最後の数字には四つの選び方しかありません。
        両辺に $x+1$ を掛けると二次方程式になります。
        したがって、数列のすべての項は七で割り切れます。
        結果を元の式に代入して確かめましょう。""",
    "ru": """Сначала сложим два числа и получим 22.
        Поезд проезжает 60 километров за час, поэтому на весь путь нужно три часа.
        Пусть x будет число яблок, которые Том купил в понедельник.
        Подождите, это не может быть верно, потому что сумма должна быть чётной.
        Для последней цифры есть только четыре варианта.
        Умножив обе части на $x+1$, получаем квадратное уравнение.
        Следовательно, каждый член последовательности делится на семь.
        Проверим результат, подставив его обратно.""",
    "ar": """أولا نجمع العددين ونحصل على 22.
        يقطع القطار ستين كيلومترا في الساعة ولذلك يحتاج إلى ثلاث ساعات لكل المسافة.
        ليكن x عدد التفاحات التي اشتراها توم يوم الاثنين.
        انتظر، هذا لا يمكن أن يكون صحيحا لأن المجموع يجب أن يكون زوجيا.
        هناك أربعة خيارات فقط للرقم الأخير.
        بضرب الطرفين في $x+1$ نحصل على معادلة تربيعية.
        إذن كل حد من حدود المتتالية يقبل القسمة على سبعة.
        لنتحقق من النتيجة بالتعويض في المعادلة.""",
}
SENTENCES = [(name, line.strip()) for name, text in LABELLED.items() for line in text.splitlines()]


def share(text: str, language: str) -> float:
    in_target, total = language_share(text, language)
    return in_target / total if total else 0.0


def test_the_set_has_every_language() -> None:
    assert set(LABELLED) == set(SUPPORTED)
    assert len(SENTENCES) == 64


def test_accuracy_on_the_labelled_set() -> None:
    """Each sentence under each of the eight targets: 512 decisions, whether it is in the target language."""
    right = {True: 0, False: 0}
    missed = []
    for name, sentence in SENTENCES:
        for target in SUPPORTED:
            if (share(sentence, target) >= 0.5) == (name == target):
                right[name == target] += 1
            else:
                missed.append((target, sentence))
    assert right[True] == 64, missed  # a sentence in the right language is never punished here
    assert right[False] >= 0.98 * 448, missed


@pytest.mark.parametrize("target", SUPPORTED)
def test_a_mixture_counts_its_words(target: str) -> None:
    own = LABELLED[target].splitlines()
    other = LABELLED["zh" if target in ("en", "ru", "ar") else "en"].splitlines()
    whole = "\n".join(own)
    assert share(whole, target) == 1.0
    mixed = share("\n".join([*own[:4], *other[:4]]), target)
    assert 0.25 < mixed < 0.75


@pytest.mark.parametrize(
    ("text", "language", "counts"),
    [
        ("Wir rechnen `the code of the thing` und $apple$ aus", "de", (4, 4)),
        ("le résultat est OK", "fr", (4, 4)),  # a borrowed word in a short sentence
        ("たろう は 東京 へ 行く 。", "ja", (5, 5)),
        ("答案", "ja", (1, 1)),  # a heading of Han alone may be either
        ("这个问题的答案是什么呢", "ja", (0, 7)),
        ("Це їжак", "ru", (1, 2)),
        ("سلام 12", "ar", (1, 1)),
        ("", "ar", (0, 0)),
        ("hello", "ar", (0, 1)),
        ("\\(the sum of it\\) und \\[ also \\]", "de", (1, 1)),
        ("der \\(nie zu \\(the end\\) ist", "de", (4, 4)),  # only what is closed is a formula
        ("Wait... das ist!!!\n\n... nicht so.", "de", (5, 5)),
    ],
)
def test_words_are_told_apart(text: str, language: str, counts: tuple[int, int]) -> None:
    assert language_share(text, language) == counts


def test_a_megabyte_is_read_in_seconds() -> None:
    words = ("the el le der " * 70_000, "数" * 300_000, "は数" * 150_000, "д" * 500_000)
    loops = ("\\( x " * 200_000, "\\[ x " * 200_000, "." * 1_000_000 + "x", "a!?" * 300_000)
    for text in (*words, *loops):
        for target in SUPPORTED:
            language_share(text, target)


@pytest.mark.parametrize("text", ["somo 3", "수를 더한다", "ab", "加", "слово", "3 + x then"])
def test_words_of_any_language_are_words(text: str) -> None:
    assert has_words(text)
    assert not has_words("3 + 4 = 7, `word` x") and not has_words("")
