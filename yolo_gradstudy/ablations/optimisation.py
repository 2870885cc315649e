# SPDX-License-Identifier: AGPL-3.0-or-later
"""The optimizer exchanged, its momentum and weight decay switched off."""

from __future__ import annotations

from yolo_gradstudy.ablations.spec import AblationSpec


def _optimizer(name: str, optimizer: str, summary: str, source: str) -> AblationSpec:
    return AblationSpec(
        name=name,
        family="optimisation",
        summary=f"{summary} The learning rate stays the one that is given.",
        source=source,
        arguments={"optimizer": optimizer},
        targets=("the optimizer",),
    )


REPLACE_OPTIMIZER_BY_SGD = _optimizer(
    "replace_optimizer_by_sgd",
    "SGD",
    "Trains with stochastic gradient descent and Nesterov momentum.",
    "Sutskever et al. 2013, ICML; torch.optim.SGD",
)
REPLACE_OPTIMIZER_BY_ADAM = _optimizer(
    "replace_optimizer_by_adam",
    "Adam",
    "Trains with Adam, whose weight decay is part of the gradient.",
    "Kingma and Ba 2015, arXiv:1412.6980; torch.optim.Adam",
)
REPLACE_OPTIMIZER_BY_ADAMW = _optimizer(
    "replace_optimizer_by_adamw",
    "AdamW",
    "Trains with AdamW, whose weight decay stands beside the gradient.",
    "Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW",
)
REPLACE_OPTIMIZER_BY_RMSPROP = _optimizer(
    "replace_optimizer_by_rmsprop",
    "RMSprop",
    "Trains with RMSprop, with momentum.",
    "Tieleman and Hinton 2012, Coursera lecture 6.5; torch.optim.RMSprop",
)
REPLACE_OPTIMIZER_BY_MUSGD = _optimizer(
    "replace_optimizer_by_musgd",
    "MuSGD",
    "Trains with Ultralytics' MuSGD, orthogonalised momentum beside SGD; the class head at three times the rate.",
    "Jordan et al. 2024 (Muon); ultralytics.optim.MuSGD",
)

NO_MOMENTUM = AblationSpec(
    name="no_momentum",
    family="optimisation",
    summary="Steps along the gradient of the step alone; of Adam and its kin, β₁ = 0.",
    source="Polyak 1964; Sutskever et al. 2013, ICML",
    arguments={"momentum": 0.0, "warmup_momentum": 0.0},
    targets=("momentum",),
)

NO_WEIGHT_DECAY = AblationSpec(
    name="no_weight_decay",
    family="optimisation",
    summary="Trains without weight decay, which Ultralytics applies to weights but not to biases and norms.",
    source="Krogh and Hertz 1991; ultralytics.engine.trainer.BaseTrainer.build_optimizer",
    arguments={"weight_decay": 0.0},
    targets=("weight decay",),
)
