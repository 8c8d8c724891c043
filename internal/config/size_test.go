package config

import "testing"

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Size
		of   int64 // of 1000
	}{
		{"", Size{}, 0},
		{"0", Size{}, 0},
		{"123", Size{Bytes: 123}, 123},
		{"50GB", Size{Bytes: 50e9}, 50e9},
		{"10%", Size{Percent: 10}, 100},
		{"12.5%", Size{Percent: 12.5}, 125},
	} {
		got, err := ParseSize(c.in)
		if err != nil || got != c.want || got.Of(1000) != c.of {
			t.Errorf("%q: %+v, of 1000 %d, %v", c.in, got, got.Of(1000), err)
		}
		if again, err := ParseSize(got.String()); err != nil || again != got {
			t.Errorf("%q: written as %q, read as %+v, %v", c.in, got, again, err)
		}
	}
	for _, bad := range []string{"-1", "much", "101%", "-3%", "NaN%", "%", "1e30GB", "5 5"} {
		if got, err := ParseSize(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
