"""`python -m sra_jax VERB`: the commands, as `sra-jax VERB`."""

from sra_jax.cli.main import main

if __name__ == "__main__":
    main()
