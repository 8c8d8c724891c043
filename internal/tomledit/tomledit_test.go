package tomledit

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// change is what the tests do to a file.
func change(d *Document) error {
	return errors.Join(d.Set("snapshot", "proxy", "thaw", "type"), d.Set("/run/s", "proxy", "thaw", "address"),
		d.Set(false, "a", "b.c", "off"), d.Append([]Pair{{"name", "thaw"}, {"n", 1}}, "list"))
}

func TestChange(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"comments, order and a changed line", "# top\nx = 1 # one\n\n[a.\"b.c\"]\n  # before\n  off = true   # why\n\n[z]\n", `# top
x = 1 # one

[a."b.c"]
  # before
  # >>> thaw: me
  # was:   off = true   # why
  off = false
  # <<< thaw

[z]
# >>> thaw: me
[proxy.thaw]
  type = 'snapshot'
  address = '/run/s'

[[list]]
  name = 'thaw'
  n = 1
# <<< thaw
`},
		{"below a header", "[a.'b.c']\n[proxy.thaw]\ntype = 'other'", `[a.'b.c']
  # >>> thaw: me
  off = false
  # <<< thaw
[proxy.thaw]
# >>> thaw: me
address = '/run/s'
# <<< thaw
# >>> thaw [no end of line before]: me
# was: type = 'other'
type = 'snapshot'
# <<< thaw
# >>> thaw: me
[[list]]
  name = 'thaw'
  n = 1
# <<< thaw
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Parse([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if err := change(d); err != nil {
				t.Fatal(err)
			}
			got, err := d.Bytes("me")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("changed file differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUndo(t *testing.T) {
	for _, c := range []struct{ name, in string }{
		{"plain", "x = 1\n"},
		{"empty", ""},
		{"no end of line", "x = 1"},
		{"changed line without an end", "[a.'b.c']\noff = true"},
		{"CRLF", "x = 1\r\n[a.'b.c']\r\noff = true\r\n"},
		{"CRLF, no end of line", "[a.'b.c']\r\noff = true"},
		{"header at the end", "[a.'b.c']"},
		{"dotted keys", "a.\"b.c\".off = true\na.d = 2\n"},
		{"value over several lines", "[a.'b.c']\noff = [\n 1, # one\n\n 2,\n]\n"},
		{"array of tables", "[[list]]\nname = 'x'\n[list.sub]\noff = 1\n[[list]]\n"},
		{"a table below a list of the same names", "[[a]]\n"},
		{"tabs", "\t[a.'b.c']\n\t\toff\t=\ttrue\t# c\n"},
		{"text with a hash", "x = '''\n# not a comment\n'''\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Parse([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			err = change(d)
			var b []byte
			if err == nil {
				b, err = d.Bytes("me")
			}
			if c.name == "a table below a list of the same names" {
				if !errors.Is(err, ErrForm) {
					t.Fatalf("got %v, want %v", err, ErrForm)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !Edited(b) {
				t.Error("what was changed does not look so")
			}
			old, there, err := Undo(b)
			if err != nil || !there {
				t.Fatalf("there %v, %v", there, err)
			}
			if diff := cmp.Diff(c.in, string(old)); diff != "" {
				t.Errorf("not as it was (-want +got):\n%s\nchanged:\n%s", diff, b)
			}
			// Once more is the same.
			d, err = Parse(old)
			if err != nil {
				t.Fatal(err)
			}
			if err := change(d); err != nil {
				t.Fatal(err)
			}
			if again, err := d.Bytes("me"); err != nil || string(again) != string(b) {
				t.Errorf("%v; changed again:\n%s", err, again)
			}
		})
	}
}

func TestUndoNew(t *testing.T) {
	d, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Set(3, "version"), change(d)); err != nil {
		t.Fatal(err)
	}
	b, err := d.Bytes("me")
	if err != nil {
		t.Fatal(err)
	}
	if old, there, err := Undo(b); err != nil || there || len(old) > 0 {
		t.Errorf("there %v, %v: %q", there, err, old)
	}
	if old, there, err := Undo(append(b, "[mine]\n"...)); err != nil || !there || string(old) != "[mine]\n" {
		t.Errorf("with a setting of somebody else: there %v, %v: %q", there, err, old)
	}
}

func TestUndoKeepsOtherChanges(t *testing.T) {
	d, err := Parse([]byte("x = 1\n[a.'b.c']\noff = true\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := change(d); err != nil {
		t.Fatal(err)
	}
	b, err := d.Bytes("me")
	if err != nil {
		t.Fatal(err)
	}
	b = append([]byte(strings.Replace(string(b), "x = 1\n", "x = 2\n", 1)), "[mine]\ny = 3\n"...)
	got, _, err := Undo(b)
	if want := "x = 2\n[a.'b.c']\noff = true\n[mine]\ny = 3\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestSame(t *testing.T) {
	const in = "[proxy.thaw]\ntype=\"snapshot\"\naddress='/run/s'\n[a.'b.c']\noff=false\n"
	d, err := Parse([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Set("snapshot", "proxy", "thaw", "type"), d.Set("/run/s", "proxy", "thaw", "address"), d.Set(false, "a", "b.c", "off")); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Bytes("me"); err != nil || string(b) != in {
		t.Errorf("a file that says so already was changed: %v\n%s", err, b)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ name, in string }{
		{"table within braces", "proxy = { other = 1 }\n"},
		{"list within brackets", "list = [ { name = 'x' } ]\n"},
		{"a number where a table is wanted", "proxy = 3\n"},
		{"list that is none", "[list]\nx = 1\n"},
		{"table by dotted keys", "[proxy]\nthaw.x = 1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Parse([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			err = change(d)
			if err == nil {
				_, err = d.Bytes("me")
			}
			if !errors.Is(err, ErrForm) {
				t.Errorf("got %v, want %v", err, ErrForm)
			}
		})
	}
}

func TestSyntaxError(t *testing.T) {
	_, err := Parse([]byte("x = 1\n\n[plugins\ny = 2\n"))
	var syntax *SyntaxError
	if !errors.As(err, &syntax) || syntax.Line != 3 || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("got %v, want line 3", err)
	}
}

func TestDamagedMarks(t *testing.T) {
	for _, c := range []struct{ in, err string }{
		{"x = 1\n# >>> thaw: me\ny = 1\n", "line 2"},
		{"x = 1\n# <<< thaw\n", "line 2"},
		{"# >>> thaw: me\n# >>> thaw: me\n# <<< thaw\n", "line 2"},
	} {
		if _, _, err := Undo([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %v", c.in, err)
		}
	}
}

// FuzzChange: a file is refused, or changed to exactly what was asked for, and
// back to its bytes.
func FuzzChange(f *testing.F) {
	for _, s := range []string{"x = 1\n[a.'b.c']\noff = true # c", "[[list]]\r\nname=1\r\n", "a.'b.c'.off=[1,\n2]\n", "proxy.thaw={}\n", "[proxy.thaw]\n[a]\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		Undo(in)
		if Edited(in) || in == nil {
			return
		}
		d, err := Parse(in)
		if err != nil {
			return
		}
		if change(d) != nil {
			return
		}
		b, err := d.Bytes("me")
		if err != nil {
			return
		}
		old, there, err := Undo(b)
		if err != nil || !there && len(in) > 0 || string(old) != string(in) {
			t.Errorf("there %v, %v: %q became %q and then %q", there, err, in, b, old)
		}
	})
}
