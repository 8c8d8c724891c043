package layertar

import (
	"bytes"
	"strconv"
	"strings"
)

// maxNameBytes is Linux's NAME_MAX, maxTargetBytes its PATH_MAX without the NUL.
const (
	maxNameBytes   = 255
	maxTargetBytes = 4095
)

const (
	whiteoutPrefix     = ".wh."
	whiteoutMetaPrefix = ".wh..wh."
	whiteoutOpaque     = ".wh..wh..opq"
	aufsLinkDir        = ".wh..wh.plnk/"
)

// cleanPath makes a name clean and relative; "" is the root. A reason refuses it.
func (l *Limits) cleanPath(raw []byte) (clean, reason string) {
	if bytes.IndexByte(raw, 0) >= 0 {
		return "", "name holds a NUL byte"
	}
	name := string(raw)
	for strings.HasPrefix(name, "./") {
		name = name[2:]
		if strings.HasPrefix(name, "/") {
			break // ".//x": an empty component, not an absolute name
		}
	}
	name = strings.TrimSuffix(name, "/")
	tidy, depth, start := true, 0, 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		switch part := name[start:i]; {
		case part == "" || part == ".":
			tidy = false
		case part == "..":
			return "", `name has a ".." component`
		case len(part) > maxNameBytes:
			return "", "name has a component longer than " + strconv.Itoa(maxNameBytes) + " bytes"
		default:
			depth++
		}
		start = i + 1
	}
	if !tidy {
		name = tidyPath(name)
	}
	switch {
	case isAbsolute(raw) && name != "" && !l.AbsoluteNames:
		return "", "name is absolute"
	case len(name) > l.PathBytes:
		return "", "name is longer than " + strconv.Itoa(l.PathBytes) + " bytes"
	case depth > l.Depth:
		return "", "name is deeper than " + strconv.Itoa(l.Depth) + " directories"
	}
	return name, ""
}

func isAbsolute(raw []byte) bool { return len(raw) > 0 && raw[0] == '/' }

// tidyPath drops empty and "." components.
func tidyPath(name string) string {
	out := make([]byte, 0, len(name))
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		if len(out) > 0 {
			out = append(out, '/')
		}
		out = append(out, part...)
	}
	return string(out)
}

// whiteout says what a path means to the layers below: typ 0 and ignored false for
// an ordinary one, otherwise what it hides. The names are those of OCI's layer.md.
func whiteout(path string) (hidden string, typ Type, ignored bool, reason string) {
	dir, base := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, base = path[:i], path[i+1:]
	}
	if path[0] != '.' && base[0] != '.' {
		return "", 0, false, ""
	}
	if strings.HasPrefix(path, whiteoutMetaPrefix) && path != whiteoutOpaque {
		return "", 0, true, ""
	}
	switch {
	case !strings.HasPrefix(base, whiteoutPrefix):
		return "", 0, false, ""
	case base == whiteoutOpaque:
		return dir, TypeOpaque, false, ""
	case strings.HasPrefix(base, whiteoutMetaPrefix):
		return "", 0, true, ""
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return "", 0, false, "whiteout hides no name"
	}
	if dir != "" {
		name = dir + "/" + name
	}
	return name, TypeWhiteout, false, ""
}
