package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// Size is a number of bytes, or a share of something that is known later. It is
// written as in "50GB" or "10%".
type Size struct {
	Bytes   int64
	Percent float64 // of what Of is given; Bytes is 0 then
}

// ParseSize reads a size; an empty one is zero.
func ParseSize(s string) (Size, error) {
	wrong := fmt.Errorf("size %q: want bytes such as 50GB, or a share such as 10%%", s)
	if s == "" {
		return Size{}, nil
	}
	if p, ok := strings.CutSuffix(s, "%"); ok {
		percent, err := strconv.ParseFloat(p, 64)
		if err != nil || !(percent >= 0 && percent <= 100) {
			return Size{}, wrong
		}
		return Size{Percent: percent}, nil
	}
	n, err := units.FromHumanSize(s)
	if err != nil || n < 0 || n == math.MaxInt64 {
		return Size{}, wrong
	}
	return Size{Bytes: n}, nil
}

// Of returns the bytes that the size is where all is total.
func (s Size) Of(total int64) int64 {
	if s.Percent > 0 {
		return int64(float64(total) * s.Percent / 100)
	}
	return s.Bytes
}

// IsZero reports whether nothing was said.
func (s Size) IsZero() bool { return s == Size{} }

// String is what ParseSize reads.
func (s Size) String() string {
	switch {
	case s.IsZero():
		return ""
	case s.Percent > 0:
		return strconv.FormatFloat(s.Percent, 'g', -1, 64) + "%"
	}
	return strconv.FormatInt(s.Bytes, 10)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSize(string(b))
	return err
}
