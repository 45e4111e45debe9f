"""``python -m diffusemble``."""

from diffusemble.app.cli import main

if __name__ == "__main__":
    main()
