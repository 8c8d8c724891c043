package mount

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMountInfo(t *testing.T) {
	const text = `42 27 0:39 / /tmp/a\040b\134c\012d ro,relatime - erofs /tmp/i\011mg ro,user_xattr
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
`
	got, err := parseMountInfo(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Info{
		{ID: 42, Minor: 39, Root: "/", Dir: "/tmp/a b\\c\nd", Type: "erofs", Source: "/tmp/i\tmg"},
		{ID: 36, Major: 98, Root: "/mnt1", Dir: "/mnt2", Type: "ext3", Source: "/dev/root"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, bad := range []string{"x", "1 2 3:4 / /a rw", "1 2 3:4 / - ext4 a", "x 2 3:4 / /a rw - ext4 a", "1 2 x:4 / /a rw - ext4 a", "1 2 3 / /a rw - ext4 a"} {
		if _, err := parseMountInfo(strings.NewReader(bad + "\n")); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestListUnder(t *testing.T) {
	all, err := ListUnder("/")
	if err != nil || len(all) == 0 {
		t.Fatalf("%d mounts, %v", len(all), err)
	}
	proc, err := ListUnder("/proc")
	if err != nil || len(proc) == 0 || proc[0].Type != "proc" {
		t.Errorf("under /proc: %v, %v", proc, err)
	}
	if some, err := ListUnder("/pro"); err != nil || len(some) != 0 {
		t.Errorf("under /pro: %v, %v", some, err)
	}
}

func FuzzParseMountInfo(f *testing.F) {
	f.Add(`42 27 0:39 / /tmp/a\040b ro,relatime - erofs /img ro`)
	f.Add(`\4\04\0400\999`)
	f.Fuzz(func(t *testing.T, line string) {
		if info, err := parseMountInfoLine(line); err == nil && len(info.Dir) > len(line) {
			t.Errorf("%q out of %q", info.Dir, line)
		}
		if got := unescape(line); len(got) > len(line) || (!strings.Contains(line, `\`) && got != line) {
			t.Errorf("unescape(%q) = %q", line, got)
		}
	})
}
