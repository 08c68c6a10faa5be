"""billiard: a dead waiter holds up nobody."""

from _peer import case, need

if __name__ == "__main__":
    case("p04_dead_waiter").main(need("billiard"))
    print("good")
