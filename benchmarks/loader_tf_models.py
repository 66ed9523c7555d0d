"""The Mask R-CNN input pipeline of tf-models-official, without masks, for `loader.py`; runs in the environment `tf_models`.

Its reader, decoder and parser as its Mask R-CNN task puts them together, with its own settings of the parser: images fitted
into one canvas, flipped at random, normalised floats, every anchor matched and labelled. It reads this project's records.

Usage: python -m benchmarks.loader_tf_models SHARDS BATCH_SIZE    # SHARDS: a pattern
"""

from __future__ import annotations

import sys

from official.vision.configs import maskrcnn as configs
from official.vision.dataloaders import input_reader_factory, maskrcnn_input, tf_example_decoder

from benchmarks.contestant import serve

# Where an image of 800/1333 fits in; a multiple of 64, as the parser wants it. Upright images come out smaller.
CANVAS = [832, 1344]


def main(shards: str, batch_size: int) -> None:
    params = configs.DataConfig(
        input_path=shards,
        is_training=True,
        global_batch_size=batch_size,
        dtype="float32",
        shuffle_buffer_size=64,
        parser=configs.Parser(aug_rand_hflip=True),
    )
    anchor = configs.Anchor()
    parser = maskrcnn_input.Parser(
        output_size=CANVAS,
        min_level=2,
        max_level=6,
        num_scales=anchor.num_scales,
        aspect_ratios=anchor.aspect_ratios,
        anchor_size=anchor.anchor_size,
        aug_rand_hflip=True,
        max_num_instances=params.parser.max_num_instances,
        include_mask=False,
        dtype=params.dtype,
    )
    reader = input_reader_factory.input_reader_generator(
        params,
        decoder_fn=tf_example_decoder.TfExampleDecoder(include_mask=False).decode,
        parser_fn=parser.parse_fn(params.is_training),
    )
    batches = iter(reader.read())

    def load(count: int) -> int:
        done = 0
        while done < count:
            next(batches)
            done += batch_size
        return done

    load(50)
    serve(load)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
