"""The methods, in torch alone: where each equation of the papers stands.

LoRACLR (arXiv 2412.09622), merge/
    objective.py     L = 1/n Σ [d_p² + max(0, m − d_n)²] + λ_mse MSE + λ_Δ ‖Δ‖, its distances and its margin
    exact.py         its minimum from second moments; the closed form is RegMean's (arXiv 2212.09849)
    adamw.py         its minimum by the published optimiser
    moments.py       statistics of a layer's inputs for both: second moments and a few tokens
    gram.py          second moments of rows that arrive in portions

CLoRA (arXiv 2403.19776), sampler/
    prompt.py        the prompt of each branch, and where each concept's words stand in it
    separation.py    the loss over the branches' attention maps, and the step against its gradient
    contrast.py      NT-Xent, the form of that loss
    displacement.py  z ← z − α ∇L, for samplers that keep latents of their own
    areas.py         which branch draws where, step by step
    turns.py         which branches a step evaluates where they take turns
    clarity.py       how clearly the plain picture shows where each concept goes
    masks.py         masks from attention, and ε = Σ M_k ε_k / Σ M_k
    objects.py       masks from the objects of the plain picture

CAT (arXiv 2404.07554), train/
    objective.py     L = ‖ε(x_t, c_T) − ε‖² + α ‖ε(x_t, c) − ε_base(x_t, c)‖², its weightings, and what is added to it
    captions.py      c_T and c: a picture's caption with the trigger, and without it
    draws.py         the pictures, noise and levels of a step
    factors.py       the LoRA before training, and its average
    scores.py        KPS and the scores that stand beside it, from vectors of pictures

Shared: concept.py (a LoRA with its words) and lowrank.py (a weight difference as two factors), min_snr.py (arXiv
2303.09556).

host/ holds all code that touches ComfyUI, in folders of the same names: lora/ (a file's effect on a model), merge/, sampler/ and
train/. Nothing else imports ComfyUI, and merge, sampler and train do not import each other; `make lint` checks both.
"""
