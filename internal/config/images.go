package config

import (
	"fmt"
	"path"
	"strings"
)

// Modes of an image.
const (
	ModeLazy  = "lazy"
	ModeEager = "eager" // brought whole, by thaw, before the pull ends
	ModeOff   = "off"   // left to containerd
)

// ImageRule says how images are had.
type ImageRule struct {
	// Match is a pattern for the reference, with its tag or without: "*" is any text
	// within an element of the path, "**" any number of elements.
	Match string `toml:"match"`
	Mode  string `toml:"mode"` // ModeLazy, ModeEager or ModeOff
}

func (r ImageRule) check() error {
	switch r.Mode {
	case ModeLazy, ModeEager, ModeOff:
	default:
		return fmt.Errorf("images: mode %q of %q: use lazy, eager or off", r.Mode, r.Match)
	}
	if _, err := path.Match(r.Match, ""); err != nil || r.Match == "" {
		return fmt.Errorf("images: match %q: %w", r.Match, path.ErrBadPattern)
	}
	return nil
}

// ImageMode returns the mode that the configuration has for an image, or "". The
// sandbox images of Kubernetes are left to containerd unless a rule says otherwise.
func (c *Config) ImageMode(ref string) string {
	for _, r := range c.Images {
		if matchImage(r.Match, ref) {
			return r.Mode
		}
	}
	if matchImage("**/pause", ref) {
		return ModeOff
	}
	return ""
}

// matchImage matches a reference, without its digest, with and without its tag.
func matchImage(pattern, ref string) bool {
	ref, _, _ = strings.Cut(ref, "@")
	name := ref
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		name = ref[:i]
	}
	elements := strings.Split(pattern, "/")
	return matchPath(elements, strings.Split(ref, "/")) || matchPath(elements, strings.Split(name, "/"))
}

func matchPath(pattern, elements []string) bool {
	for i, p := range pattern {
		if p == "**" {
			for skip := range len(elements) - i + 1 {
				if matchPath(pattern[i+1:], elements[i+skip:]) {
					return true
				}
			}
			return false
		}
		if i >= len(elements) {
			return false
		}
		if ok, _ := path.Match(p, elements[i]); !ok { // checked before
			return false
		}
	}
	return len(pattern) == len(elements)
}
