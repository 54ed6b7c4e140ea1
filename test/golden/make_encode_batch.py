"""Batches of texts and of pairs as transformers lays them out: test/golden/encode-batch.json.

    /opt/peer/bin/python make_encode_batch.py FOLDER_OF_ALL_MINILM_L6_V2
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

texts = ["Warp.", "A stitch in time saves nine, they say; haste makes waste.", "", "naïve 🧵 weft"]
pairs = ["The warp runs lengthwise on the loom.", "Nine.", "Only the second", "still waters run deep, and so on and on"]

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
cases = []
for max_length in (6, 9, 12, 64):
    for second in (None, pairs):
        encoded = tokenizer(texts, second, truncation="longest_first", max_length=max_length, padding=False)
        cases.append(
            {
                "maxLength": max_length,
                "pairs": second is not None,
                "ids": encoded["input_ids"],
                "tokenTypes": encoded["token_type_ids"],
            }
        )
golden = {"texts": texts, "secondTexts": pairs, "cases": cases}
Path(__file__).with_name("encode-batch.json").write_text(json.dumps(golden, ensure_ascii=False))
