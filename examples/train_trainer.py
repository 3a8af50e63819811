"""Adapt CLIP to a few pictures per class with transformers' Trainer, and save the adapter.

python examples/train_trainer.py IMAGES --model openai/clip-vit-base-patch16 --output outputs/trainer

IMAGES has the folders train/<class>/ and test/<class>/, or is anything else with these splits that `load_image_data`
reads: parquet files, a data set on the Hub. Settings of Trainer are options too: --bf16 True --push_to_hub True.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from peft import get_peft_model
from transformers import CLIPModel, CLIPProcessor, HfArgumentParser, set_seed

from anprompt_peft import ANPromptConfig, Metric, TrainingFacts
from anprompt_peft.data import ClipTransform, class_names_of, few_shot, load_image_data
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments


@dataclass
class Options:
    """What is not a setting of Trainer."""

    data: str = field(metadata={"help": "Folder, parquet files or data set on the Hub, with splits train and test."})
    model: str = field(default="openai/clip-vit-base-patch16", metadata={"help": "CLIP to adapt."})
    template: str = field(default="a photo of a {}.", metadata={"help": "Text around a class name."})
    shots: int = field(default=16, metadata={"help": "Training images per class."})


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate, save; returns what the evaluation found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--data", *arguments]
    parser: Any = HfArgumentParser([Options, ANPromptTrainingArguments], description=__doc__)
    options, training = parser.parse_args_into_dataclasses(arguments)
    processor = CLIPProcessor.from_pretrained(options.model)
    data = load_image_data(options.data)
    train = few_shot(data["train"], options.shots, training.seed)

    set_seed(training.seed)
    config = ANPromptConfig(class_names=class_names_of(train), template=options.template)
    model: Any = get_peft_model(CLIPModel.from_pretrained(options.model), config)
    model.print_trainable_parameters()
    trainer = ANPromptTrainer(
        model,
        training,
        train_dataset=ClipTransform(processor, augment=True).apply(train),
        eval_dataset=ClipTransform(processor).apply(data["test"]),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    metrics = trainer.evaluate()
    accuracy = Metric("accuracy", metrics["eval_accuracy"], options.data, split="test", seeds=[training.seed])
    how = {
        "shots": options.shots,
        "recipe": training.recipe,
        "epochs": training.num_train_epochs,
        "seed": training.seed,
    }
    model.describe_training(TrainingFacts(arguments=how, metrics=[accuracy]))
    trainer.save_model()
    if training.push_to_hub:
        trainer.push_to_hub()
    print(
        f"accuracy {metrics['eval_accuracy']:.1%} on {len(data['test'])} test images; adapter in {training.output_dir}"
    )
    return metrics


if __name__ == "__main__":
    main()
