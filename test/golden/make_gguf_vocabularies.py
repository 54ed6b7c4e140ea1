"""Small SentencePiece and WordPiece vocabularies as GGUF metadata, with what transformers makes of texts by them.

  llama: transformers' own reading of a GGUF file whose prefix space is put before every text (its builder for Phi-3;
         for other models it spares texts that begin with a space, which neither SentencePiece nor llama.cpp does);
  gemma: its builder for Gemma: no prefix space, merges in the order of the vocabulary, spaces spelled as spaces;
  bert:  the BertTokenizer that the file was made from, since transformers reads none of these files; marked as
         llama.cpp's convert_hf_to_gguf.py does.

Run with transformers, tokenizers and gguf: python test/golden/make_gguf_vocabularies.py
Writes gguf_vocabularies.json and vocabulary_<name>.gguf beside itself.
"""

import json
import pathlib

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

from make_tokenizer import TEXTS, random_texts

HERE = pathlib.Path(__file__).parent
CORPUS = (HERE / "../../examples/data/quickstart.txt").resolve().read_text()[:60_000].splitlines()
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def write(name, architecture, model, tokens, types, scores=None, **ids):
    writer = gguf.GGUFWriter(HERE / f"vocabulary_{name}.gguf", architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores(scores)
    for key, value in ids.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return HERE / f"vocabulary_{name}.gguf"


def pieces(size):
    """Pieces of a BPE on words with the space in front, in the order in which they were merged, then single characters."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.get)
    return [p for p in ordered if len(p) > 1], [p for p in ordered if len(p) == 1]


def sentencepiece(name, architecture, respell):
    merged, single = pieces(700)
    byte = [f"<0x{b:02X}>" for b in range(256)]
    # As in Gemma's vocabulary: runs of spaces are pieces, too.
    spaces = ["\u2581" * n for n in range(2, 6)] if respell else []
    head = ["<unk>", "<s>", "</s>"]
    tokens = head + byte + spaces + merged + single + ["<|user|>", "<think>"]
    types = ([UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [USER if respell else NORMAL] * len(spaces)
             + [NORMAL] * (len(merged) + len(single)) + [CONTROL, USER])
    ranks = {p: i for i, p in enumerate(spaces + merged + single)}
    scores = [float(-ranks[t]) if t in ranks else 0.0 for t in tokens]
    if respell:
        tokens = [" " * len(t) if t in spaces else t for t in tokens]
    more = {"add_space_prefix": False} if respell else {}
    path = write(name, architecture, "llama", tokens, types, scores, bos_token_id=1, eos_token_id=2, unk_token_id=0,
                 add_bos_token=True, **more)
    arch, vocabulary, _ = get_gguf_tokenizer(str(path))
    backend, _ = convert_gguf_tokenizer(arch, vocabulary)
    reference = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    return reference


def wordpiece(name):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    cased = name == "bert-cased"
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    spelled = [t if t in special else t[2:] if t.startswith("##") else "\u2581" + t for t in tokens]
    types = [CONTROL if t in special else NORMAL for t in tokens]
    write(name, "bert", "bert", spelled, types, bos_token_id=2, sep_token_id=3, unk_token_id=1, pad_token_id=0,
          mask_token_id=4)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def cases(tokenizer, specials):
    texts = TEXTS + ["  hi", "a  b   c    d", "Ishmael<|user|>whale", "<think>The sea</s> and <s>"] + random_texts(40)
    texts += CORPUS[40:60]
    encode = lambda text: tokenizer(text, add_special_tokens=specials)["input_ids"]
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
    return [{"text": t, "ids": encode(t), "decoded": decode(encode(t))} for t in texts]


def main():
    golden = {
        "llama": cases(sentencepiece("llama", "phi3", False), False),
        "gemma": cases(sentencepiece("gemma", "gemma", True), False),
        "bert": cases(wordpiece("bert"), True),
        "bert-cased": cases(wordpiece("bert-cased"), True),
    }
    (HERE / "gguf_vocabularies.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
