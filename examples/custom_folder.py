"""Your own folder of pictures: tune on half of the classes, measure on both halves, and look at the result.

python examples/custom_folder.py FOLDER --model openai/clip-vit-base-patch16 --output outputs/folder

FOLDER has one sub-folder per class. A fifth of the pictures is held out to measure on; pictures that cannot be read
are left out and counted. OUTPUT gets the adapter, the names of both halves, and report.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import CLIPModel, CLIPProcessor, set_seed

from anprompt_peft import ANPromptConfig
from anprompt_peft.data import (
    ClipTransform,
    check_images,
    class_names_of,
    few_shot,
    halves,
    load_image_data,
    select_classes,
    split_data,
)
from anprompt_peft.evaluation import BaseToNew, base_to_new
from anprompt_peft.files import whole_folder
from anprompt_peft.provenance import provenance
from anprompt_peft.report import ReportData, describe_adapter, predict, read_geometry, write_report
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments


def main(arguments: list[str] | None = None) -> BaseToNew:
    """Train and measure; returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="one sub-folder per class")
    parser.add_argument("--model", default="openai/clip-vit-base-patch16", help="CLIP to adapt")
    parser.add_argument("--template", default="a photo of a {}.", help="text around a class name")
    parser.add_argument("--shots", type=int, default=16, help="training images per class (default 16)")
    parser.add_argument("--epochs", type=float, default=10, help="default 10")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--output", type=Path, default=Path("outputs/folder"), help="folder to write or replace")
    options = parser.parse_args(arguments)

    images, corrupt = check_images(load_image_data(options.folder, "train"), on_corrupt="skip")
    parts = split_data(images, test=0.2, seed=0)
    names = halves(class_names_of(images))
    processor = CLIPProcessor.from_pretrained(options.model)
    shots: Any = few_shot(select_classes(parts["train"], names.base), options.shots, options.seed)

    set_seed(options.seed)
    config = ANPromptConfig(class_names=list(names.base), template=options.template)
    model: Any = get_peft_model(CLIPModel.from_pretrained(options.model), config)
    with whole_folder(options.output, replaces="report.html") as folder:
        training = ANPromptTrainingArguments(
            str(folder / "trainer"),
            num_train_epochs=options.epochs,
            seed=options.seed,
            save_strategy="no",
            report_to="none",
        )
        data: Any = ClipTransform(processor, augment=True).apply(shots)
        trainer = ANPromptTrainer(model, training, train_dataset=data)
        trainer.train()
        model.eval()
        found = []
        for half, classes in (("base", names.base), ("new", names.new)):
            test: Any = select_classes(parts["test"], classes)
            model.set_classes(list(classes))
            batches: Any = DataLoader(ClipTransform(processor).apply(test), 100)
            found.append(predict(model, batches, half, image=test["image"].__getitem__))
        model.set_classes(None)
        names.save(folder / "base-new.json")
        model.save_pretrained(str(folder / "adapter"))
        report = ReportData(
            f"ANPrompt on {Path(options.folder).name}",
            predictions=found,
            history=trainer.state.log_history,
            geometry=read_geometry(model),
            settings=describe_adapter(model),
            provenance=provenance(),
            notes=[f"{len(corrupt)} images could not be read and were left out."],
        )
        write_report(report, folder / "report.html")
    base, new = ((half.predicted == half.labels)[None] for half in found)
    figures = base_to_new(base, new)
    print(f"accuracy in %: base {figures.base}, new {figures.new}, harmonic mean {figures.harmonic_mean}")
    print(f"Written to {options.output}/: adapter/, base-new.json, report.html")
    return figures


if __name__ == "__main__":
    main()
