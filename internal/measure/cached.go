package measure

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lowers are the lower directories of the overlay at dir, the uppermost first.
func lowers(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	dirs, ok := parseLowers(string(b), dir)
	if !ok {
		return nil, fmt.Errorf("find what is below %s: no overlay is mounted there", dir)
	}
	return dirs, nil
}

// parseLowers finds the overlay mounted last at dir in /proc/self/mountinfo:
//
//	36 35 0:40 / DIR OPTIONS [OPTIONAL...] - overlay SOURCE OPTIONS
func parseLowers(mounts, dir string) (found []string, ok bool) {
	for line := range strings.Lines(mounts) {
		before, after, cut := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !cut || len(fields) < 5 || len(rest) < 3 || unescape(fields[4]) != dir || rest[0] != "overlay" {
			continue
		}
		found, ok = nil, true
		for option := range strings.SplitSeq(rest[2], ",") {
			key, value, _ := strings.Cut(option, "=")
			switch key {
			case "lowerdir":
				for d := range strings.SplitSeq(value, ":") {
					if d != "" { // "::" begins layers of data only
						found = append(found, unescape(d))
					}
				}
			case "lowerdir+":
				found = append(found, unescape(value))
			}
		}
	}
	return found, ok
}

// unescape undoes mountinfo's \040 and the like.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cached is how many bytes of a file of the lower directories the page cache has; false
// where none has it. It opens the file where it raises no event of the overlay.
func cached(dirs []string, path string) (int64, bool, error) {
	for _, dir := range dirs {
		root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, false, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		fd, err := unix.Openat2(root, strings.TrimPrefix(path, "/"), &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_XDEV})
		unix.Close(root)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), filepath.Join(dir, path))
		n, err := resident(f)
		f.Close()
		return n, err == nil, err
	}
	return 0, false, nil
}

// resident is how many bytes of a file are in the page cache.
func resident(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return 0, err
	}
	var c unix.Cachestat_t // Len 0: to the end of the file
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &c, 0)
	if errors.Is(err, unix.ENOSYS) { // before Linux 6.5
		return residentByMincore(f, info.Size())
	}
	if err != nil {
		return 0, &os.PathError{Op: "cachestat", Path: f.Name(), Err: err}
	}
	return min(int64(c.Cache)*int64(os.Getpagesize()), info.Size()), nil
}

func residentByMincore(f *os.File, size int64) (int64, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	defer unix.Munmap(b)
	page := int64(os.Getpagesize())
	vec := make([]byte, (size+page-1)/page)
	if err := mincore(b, vec); err != nil {
		return 0, &os.PathError{Op: "mincore", Path: f.Name(), Err: err}
	}
	n := int64(0)
	for _, v := range vec {
		n += int64(v & 1)
	}
	return min(n*page, size), nil
}

// pages is what the page cache has of files that were opened. A file is looked at again
// at each look, for more of it may be there.
type pages struct {
	lowers []string
	bytes  map[string]int64
	err    error // why nothing is known
}

func newPages(root string) *pages {
	p := &pages{bytes: map[string]int64{}}
	p.lowers, p.err = lowers(root)
	return p
}

// look asks the kernel for files, and returns their sum.
func (p *pages) look(paths []string) int64 {
	sum := int64(0)
	for _, path := range paths {
		if p.err != nil {
			return 0
		}
		n, known, err := cached(p.lowers, path)
		p.err = err
		if known {
			p.bytes[path] = max(p.bytes[path], n)
			sum += n
		}
	}
	return sum
}
