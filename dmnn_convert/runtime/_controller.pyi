def decide(
    x: int,
    pooled: int,
    before: int,
    hidden: int,
    batch: int,
    places: int,
    controller: tuple[int, int, int, int, int, int, int, int],
    /,
) -> list[list[float]]: ...
