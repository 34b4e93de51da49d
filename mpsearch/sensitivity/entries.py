"""What every estimator is, for listings; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ENTRIES", "EstimatorInfo"]


@dataclass(frozen=True)
class EstimatorInfo:
    """What a reader needs to know to choose an estimator.

    Attributes:
        name: Name of the estimator.
        summary: What it computes, in one sentence.
        passes: Work it does on a model of L layers with B options.
        memory: What it holds beside the model and one batch's forward pass.
        source: Where the method comes from.
        scores_activations: Whether it sees the error of quantized activations.
        implementation: `module:Class`, imported on use.
    """

    name: str
    summary: str
    passes: str
    memory: str
    source: str
    scores_activations: bool
    implementation: str


ENTRIES: tuple[EstimatorInfo, ...] = (
    EstimatorInfo(
        name="gradient_deviation",
        summary="Inner product of the loss gradient with the quantization error of weights and "
        "activations, in absolute value",
        passes="1 forward + 1 backward over the data for all layers and options",
        memory="one gradient of all weights in float64, and one batch's activations",
        source="first-order Taylor term, after AutoRound's DeltaLoss and SignRoundV2",
        scores_activations=True,
        implementation="mpsearch.sensitivity.gradient:GradientDeviation",
    ),
    EstimatorInfo(
        name="ggn_trace",
        summary="Mean Gauss-Newton trace of a layer (the Fisher with labels drawn from the model) "
        "times its squared weight quantization error",
        passes="1 forward + K backward passes without weight gradients over the data",
        memory="one batch's layer inputs; per-sample products in chunks of 16 MiB",
        source="Martens 2020, JMLR 21, 'New insights and perspectives on the natural gradient'",
        scores_activations=False,
        implementation="mpsearch.sensitivity.fisher:GgnTrace",
    ),
    EstimatorInfo(
        name="empirical_fisher",
        summary="Mean squared gradient of single inputs in weights and activations times the "
        "noise of quantization",
        passes="1 forward + 1 backward over the data for all layers and options",
        memory="one batch's layer inputs; per-sample products in chunks of 16 MiB",
        source="FIT, Zandonati et al. 2022, arXiv 2210.08502",
        scores_activations=True,
        implementation="mpsearch.sensitivity.empirical_fisher:EmpiricalFisher",
    ),
    EstimatorInfo(
        name="fisher_output",
        summary="Squared loss gradient in a layer's output times the squared error that the "
        "option makes there",
        passes="1 forward + 1 backward without weight gradients (K without labels) + 1 forward of "
        "each layer alone per option",
        memory="one batch's layer inputs, and K - 1 output gradients",
        source="BRECQ, Li et al. 2021, arXiv 2102.05426; NVIDIA ModelOpt's gradient score",
        scores_activations=True,
        implementation="mpsearch.sensitivity.fisher_output:FisherOutput",
    ),
    EstimatorInfo(
        name="hessian_trace",
        summary="Mean Hessian trace in a layer's weight and input times the squared quantization "
        "error there",
        passes="1 gradient graph + K Hessian-vector products over the data, all layers at once",
        memory="one batch's double graph (about three forward passes), one probe of all weights",
        source="HAWQ-V2, Dong et al. 2020, arXiv 1911.03852; Hutchinson 1990",
        scores_activations=True,
        implementation="mpsearch.sensitivity.hessian:HessianTrace",
    ),
    EstimatorInfo(
        name="measured_loss",
        summary="Measured loss increase with one layer at the option and all others in float",
        passes="1 + L·B forward passes over the data",
        memory="the quantized weights",
        source="CalibTIP, Hubara et al. 2021, arXiv 2006.10518",
        scores_activations=True,
        implementation="mpsearch.sensitivity.measured:MeasuredLoss",
    ),
    EstimatorInfo(
        name="measured_kl",
        summary="Measured divergence of the output from the float model's with one layer at the "
        "option, without labels",
        passes="1 + L·B forward passes over the data",
        memory="the quantized weights",
        source="ZeroQ, Cai et al. 2020, arXiv 2001.00281; NVIDIA ModelOpt's KL score",
        scores_activations=True,
        implementation="mpsearch.sensitivity.measured:MeasuredKl",
    ),
    EstimatorInfo(
        name="sqnr",
        summary="Noise-to-signal ratio that one layer at the option leaves at the model's output, "
        "or at its own",
        passes="1 + L·B forward passes over the data; at='layer': 1, and each layer alone per "
        "option",
        memory="the quantized weights",
        source="AIMET, Siddegowda et al. 2022, arXiv 2201.08442",
        scores_activations=True,
        implementation="mpsearch.sensitivity.measured:Sqnr",
    ),
    EstimatorInfo(
        name="taylor2",
        summary="First-order term plus half the second-order Gauss-Newton term of the whole error, "
        "weights and inputs together",
        passes="1 forward + K + 1 backward passes without weight gradients + 1 forward of each "
        "layer alone per option",
        memory="one batch's layer inputs, and K output gradients",
        source="LeCun et al. 1989, 'Optimal Brain Damage', with the first-order term; Martens 2020",
        scores_activations=True,
        implementation="mpsearch.sensitivity.taylor:Taylor2",
    ),
    EstimatorInfo(
        name="hessian_top_eigenvalue",
        summary="Half the largest Hessian eigenvalue of a layer times its squared weight error",
        passes="1 gradient graph + L Hessian-vector products of one layer each, per "
        "power iteration",
        memory="one batch's double graph, one vector of all weights",
        source="HAWQ, Dong et al. 2019, arXiv 1905.03696",
        scores_activations=False,
        implementation="mpsearch.sensitivity.eigenvalue:HessianTopEigenvalue",
    ),
    EstimatorInfo(
        name="entropy",
        summary="Entropy that quantization takes from the histograms of a layer's input and weight",
        passes="2 forward passes over the data",
        memory="256 counts per layer and format",
        source="after QuantMCU, Liang et al. 2024",
        scores_activations=True,
        implementation="mpsearch.sensitivity.feature_maps:Entropy",
    ),
    EstimatorInfo(
        name="orthogonality",
        summary="Bits taken from a layer, weighted by how unlike its outputs are to "
        "those of other layers",
        passes="1 forward pass over 64 inputs",
        memory="64 x 64 products per layer",
        source="OMPQ, Ma et al. 2023, arXiv 2109.07865",
        scores_activations=False,
        implementation="mpsearch.sensitivity.feature_maps:Orthogonality",
    ),
    EstimatorInfo(
        name="entropy_weight",
        summary="Entropy of the weights' histogram times the relative squared error of "
        "quantization",
        passes="no forward pass, no data",
        memory="one weight in float64",
        source="after QuantMCU, Liang et al. 2024",
        scores_activations=False,
        implementation="mpsearch.sensitivity.weight_statistics:EntropyWeight",
    ),
    EstimatorInfo(
        name="kurtosis",
        summary="Kurtosis of the weights times the relative squared error of quantization",
        passes="no forward pass, no data",
        memory="one weight in float64",
        source="after KV-AdaQuant",
        scores_activations=False,
        implementation="mpsearch.sensitivity.weight_statistics:Kurtosis",
    ),
    EstimatorInfo(
        name="variance",
        summary="Variance of the weights times the relative squared error of quantization",
        passes="no forward pass, no data",
        memory="one weight in float64",
        source="after ARKV",
        scores_activations=False,
        implementation="mpsearch.sensitivity.weight_statistics:Variance",
    ),
    EstimatorInfo(
        name="max_to_mean",
        summary="Ratio of the largest to the mean magnitude of the weights times the "
        "relative squared error of quantization",
        passes="no forward pass, no data",
        memory="one weight in float64",
        source="after 'Beyond Outliers'",
        scores_activations=False,
        implementation="mpsearch.sensitivity.weight_statistics:MaxToMean",
    ),
    EstimatorInfo(
        name="frobenius_norm",
        summary="Frobenius norm of the weights times the relative squared error of quantization",
        passes="no forward pass, no data",
        memory="one weight in float64",
        source="after KV-AdaQuant",
        scores_activations=False,
        implementation="mpsearch.sensitivity.weight_statistics:FrobeniusNorm",
    ),
    EstimatorInfo(
        name="spectral_norm",
        summary="Largest singular value of the weights times the relative squared error "
        "of quantization",
        passes="no forward pass, no data",
        memory="one weight in float64",
        source="after KV-AdaQuant",
        scores_activations=False,
        implementation="mpsearch.sensitivity.weight_statistics:SpectralNorm",
    ),
    EstimatorInfo(
        name="pairwise",
        summary="Losses of single choices and of pairs of them, for the quadratic solver",
        passes="1 + L·B forward passes over the data; terms='measured': (L·B)²/2",
        memory="the output of every choice for as many inputs as fit into 1 GiB, (L·B)² pairs",
        source="CLADO, Deng et al. 2023, arXiv 2307.05657",
        scores_activations=True,
        implementation="mpsearch.sensitivity.pairwise:Pairwise",
    ),
    EstimatorInfo(
        name="auto",
        summary="The scores of the most trusted candidate whose proposals are not measurably worse "
        "than the best on inputs that its scores have not seen",
        passes="1 + L·B forward passes over the data for each loss, those of fisher_output five "
        "times and of taylor2 once, those of the chosen one again, + 12 forward passes",
        memory="that of its candidates",
        source="this project",
        scores_activations=True,
        implementation="mpsearch.sensitivity.auto:Auto",
    ),
)
