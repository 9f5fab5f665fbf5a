"""The programs that run inside engine processes; the only modules that import torch, transformers and diffusers."""
