# ruff: noqa: RUF012  # modeling code has Transformers' habits
# mypy: ignore-errors
import numpy
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import MultiModalData, ProcessorMixin

PATCH = 32


class FinchImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def preprocess(self, images, **kwargs):
        shapes = [numpy.asarray(image).shape[:2] for image in images]
        pixels = [numpy.zeros((3, 8, 8), dtype=numpy.float32) for _ in images]
        return BatchFeature(data={"pixel_values": pixels, "grids": [grid(*shape) for shape in shapes]})


def grid(height, width):
    return max(1, -(-height // PATCH)), max(1, -(-width // PATCH))


class FinchProcessor(ProcessorMixin):
    attributes = ["image_processor", "tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        self.image_token, self.end_token = "<image>", "<end>"
        self.image_token_ids = [tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, self.end_token)]
        super().__init__(image_processor, tokenizer)

    def count(self, rows, columns):
        return rows * (columns + 1)

    def expanded(self, rows, columns):
        return ([self.image_token] * columns + [self.end_token]) * rows

    def __call__(self, images=None, text=None, return_mm_token_type_ids=False, **kwargs):
        made = self.image_processor.preprocess(images) if images is not None else {"grids": []}
        grids = iter(made["grids"])
        words = []
        for word in text.replace(self.image_token, f" {self.image_token} ").split():
            words += self.expanded(*next(grids)) if word == self.image_token else [word]
        ids = [self.tokenizer.convert_tokens_to_ids(word) for word in words]
        found = {"input_ids": [ids]}
        if images is not None:
            found["pixel_values"] = made["pixel_values"]
        if return_mm_token_type_ids:
            found["mm_token_type_ids"] = [[int(token in self.image_token_ids) for token in ids]]
        return BatchFeature(data=found)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs):
        if image_sizes is None:
            return MultiModalData()
        counts = [self.count(*grid(height, width)) for height, width in image_sizes]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))
