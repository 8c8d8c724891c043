package testenv

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main is for a package's TestMain: it runs the tests, and fails if goroutines of
// theirs go on. They have a minute to end: goleak itself waits for half a second,
// which on a busy machine may be too short.
func Main(m *testing.M) {
	code := m.Run()
	for deadline := time.Now().Add(time.Minute); code == 0; {
		err := goleak.Find()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}
