"""The embedded world of the default recipe: two languages, verifiable problems, general requests, two tiny base models.

`problems` and `general` make tasks, `corpus` the documents of the base models, `tokenizer` the vocabulary,
`pretrain` the weights, `source` the prompts of a run. Nothing here is downloaded.
"""
