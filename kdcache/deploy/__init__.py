"""What a trained student is wanted for: as a file that other programs run, and asked about images of any kind."""
