//go:build !amd64

package spanhash

import "testing"

func withoutAcceleration(t *testing.T, test func(*testing.T)) { test(t) }
