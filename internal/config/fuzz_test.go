package config

import (
	"strings"
	"testing"
)

// FuzzParse: a file is an error or a configuration whose values can be used.
func FuzzParse(f *testing.F) {
	f.Add([]byte("root = \"/x\"\nmount = \"fuse\"\nbackground = \"50MB\"\nidle-exit = \"1m\"\ninsecure = [\"a:1\"]\nmirrors = { \"docker.io\" = [\"https://m\"] }\n"))
	f.Add([]byte("grace = \"1e9h\""))
	f.Add([]byte("[mirrors]\nx = []\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := Default()
		err := c.parse(b)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without a message")
			}
			return
		}
		if n, err := ParseRate(c.Background); err != nil || n < -1 {
			t.Errorf("background %q is %d, %v", c.Background, n, err)
		}
	})
}
