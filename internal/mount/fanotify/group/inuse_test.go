package group

import (
	"os"
	"path/filepath"
	"testing"
)

func TestInUse(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check := func(want bool) {
		t.Helper()
		if got, err := InUse(int(f.Fd())); got != want || err != nil {
			t.Errorf("in use: %v, %v, want %v", got, err, want)
		}
	}
	check(false)
	for _, flag := range []int{os.O_RDONLY, os.O_RDWR} {
		other, err := os.OpenFile(f.Name(), flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		check(true)
		other.Close()
		check(false)
	}
}
