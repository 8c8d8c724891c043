package spanhash

import "testing"

// withoutAcceleration runs a test as on a CPU without SHA instructions.
func withoutAcceleration(t *testing.T, test func(*testing.T)) {
	defer func(was bool) { accelerated = was }(accelerated)
	accelerated = false
	test(t)
}
