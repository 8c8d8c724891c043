package mount

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Info is one line of /proc/self/mountinfo.
type Info struct {
	// ID is the mount's number.
	ID int
	// Major and Minor are the device number that stat gives for files on it.
	Major, Minor uint32
	// Root is the part of the file system that is mounted, Dir where.
	Root, Dir string
	// Type is the file system's name, Source what it was mounted from.
	Type, Source string
}

// ListUnder returns the mounts on or below the directory prefix, in the order they were made: unmount them from the end.
// The prefix has no symbolic links.
func ListUnder(prefix string) ([]Info, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := parseMountInfo(f)
	if err != nil {
		return nil, err
	}
	prefix = filepath.Clean(prefix)
	under := all[:0]
	for _, info := range all {
		if info.Dir == prefix || prefix == "/" || strings.HasPrefix(info.Dir, prefix+"/") {
			under = append(under, info)
		}
	}
	return under, nil
}

func parseMountInfo(r io.Reader) ([]Info, error) {
	var all []Info
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // an overlay of many layers has a long line
	for lines.Scan() {
		info, err := parseMountInfoLine(lines.Text())
		if err != nil {
			return nil, err
		}
		all = append(all, info)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return all, nil
}

// parseMountInfoLine reads "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw", see proc_pid_mountinfo(5).
func parseMountInfoLine(line string) (Info, error) {
	before, after, ok := strings.Cut(line, " - ")
	head, tail := strings.Split(before, " "), strings.Split(after, " ")
	if !ok || len(head) < 6 || len(tail) < 2 {
		return Info{}, fmt.Errorf("parse mountinfo line %q: fields missing", line)
	}
	id, err := strconv.Atoi(head[0])
	if err != nil {
		return Info{}, fmt.Errorf("parse mountinfo line %q: %w", line, err)
	}
	majorText, minorText, _ := strings.Cut(head[2], ":")
	major, err := strconv.ParseUint(majorText, 10, 32)
	if err != nil {
		return Info{}, fmt.Errorf("parse mountinfo line %q: %w", line, err)
	}
	minor, err := strconv.ParseUint(minorText, 10, 32)
	if err != nil {
		return Info{}, fmt.Errorf("parse mountinfo line %q: %w", line, err)
	}
	return Info{
		ID: id, Major: uint32(major), Minor: uint32(minor), Root: unescape(head[3]), Dir: unescape(head[4]),
		Type: tail[0], Source: unescape(tail[1]),
	}, nil
}

// unescape replaces \ooo (the kernel writes space, tab, newline, # and backslash so) by its byte.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && len(s)-i >= 4 {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(v))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
