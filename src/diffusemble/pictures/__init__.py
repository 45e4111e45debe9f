"""Pictures for people: contact sheets, maps over a picture, and what a PNG file says about itself."""
