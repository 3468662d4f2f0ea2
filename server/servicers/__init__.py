"""One class for each service of the contract: check, hand to the engine, translate."""
