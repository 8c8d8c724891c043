package lab

import (
	"fmt"
	"time"
)

// Network is the shape of the way to the registry. Zero fields do not limit.
type Network struct {
	TTFB     time.Duration // from the end of a request's header to the first byte of its answer
	Connect  time.Duration // cost of a new connection (handshakes), added to its first answer
	ConnRate int64         // bytes a second on one connection
	Rate     int64         // bytes a second on all connections together
}

// Profiles lists the names [Profile] knows.
var Profiles = []string{"cloud", "slow", "fast", "none"}

// Profile returns a named network: cloud is a registry in the same region, slow
// a bad line, fast one in the same rack, none loopback as it is.
func Profile(name string) (Network, error) {
	const mb = 1_000_000
	switch name {
	case "cloud":
		return Network{TTFB: 20 * time.Millisecond, ConnRate: 60 * mb, Rate: 250 * mb}, nil
	case "slow":
		return Network{TTFB: 50 * time.Millisecond, ConnRate: 10 * mb, Rate: 25 * mb}, nil
	case "fast":
		return Network{TTFB: 2 * time.Millisecond, ConnRate: 200 * mb, Rate: 1000 * mb}, nil
	case "none":
		return Network{}, nil
	}
	return Network{}, fmt.Errorf("unknown network %q, not one of %v", name, Profiles)
}
