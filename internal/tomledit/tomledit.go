// Package tomledit changes a few settings of a TOML file that others own, and
// takes the changes back.
//
// A change is made to whole lines, and everything else keeps its bytes:
// comments, order, quotes, ends of lines. Changed lines stand between two
// comments, with the lines that were there as comments of their own, so that
// Undo gives back the file as it was, whatever was edited around them, and a
// reader sees who did what.
//
// What cannot be done by lines is refused: the result is parsed, and has to be
// the old settings with the new ones put in, and nothing else. The package
// knows no files and no particular settings.
package tomledit

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// SyntaxError is a file that is no TOML.
type SyntaxError struct {
	Line, Column int
	Err          error
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %v", e.Line, e.Column, e.Err)
}

func (e *SyntaxError) Unwrap() error { return e.Err }

// ErrForm is a file that says something in a form that cannot be changed by
// lines, such as a table within braces.
var ErrForm = errors.New("it is written in a form that cannot be changed line by line")

// Document is a file that was read. Set and Append collect changes; Bytes makes
// them.
type Document struct {
	data   []byte
	tables []table
	keys   []keyValue
	values map[string]any // as it was
	want   map[string]any // as it shall be

	splices  []splice
	added    []addition
	inserted map[int]*splice // by table
}

// table is a header. The first one of a document is none: its root.
type table struct {
	path       []string
	array      bool // [[path]], or below one
	start, end int  // its line
}

// keyValue is one setting.
type keyValue struct {
	path       []string // with its table's
	table      int
	keyEnd     int // where its key ends
	valueStart int // the first byte of its value
	text       int // where the key begins
	start, end int // its lines
}

// splice puts text in the place of the lines from start to end.
type splice struct {
	start, end int
	lines      []string
}

// addition is a table that goes to the end of the file.
type addition struct {
	path  []string
	array bool
	lines []string
}

// Parse reads a file; nil is one that is not there. The error is a *SyntaxError.
func Parse(b []byte) (*Document, error) {
	d := &Document{data: b, tables: []table{{}}, inserted: map[int]*splice{}}
	if err := toml.Unmarshal(b, &d.values); err != nil {
		return nil, syntaxError(err)
	}
	if d.values == nil {
		d.values = map[string]any{}
	}
	d.want = clone(d.values)
	var p unstable.Parser
	p.Reset(b)
	for p.NextExpression() {
		d.expression(&p, p.Expression())
	}
	if err := p.Error(); err != nil {
		return nil, &SyntaxError{Err: err} // toml.Unmarshal reads no more than the parser
	}
	return d, nil
}

func syntaxError(err error) error {
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		line, column := decode.Position()
		return &SyntaxError{Line: line, Column: column, Err: err}
	}
	return &SyntaxError{Line: 1, Column: 1, Err: err}
}

// expression notes where a header or a setting is.
func (d *Document) expression(p *unstable.Parser, n *unstable.Node) {
	var path []string
	first, last := -1, 0
	for it := n.Key(); it.Next(); {
		k := it.Node()
		path = append(path, string(k.Data))
		if first < 0 {
			first = int(k.Raw.Offset)
		}
		last = int(k.Raw.Offset + k.Raw.Length)
	}
	switch n.Kind {
	case unstable.Table, unstable.ArrayTable:
		t := table{path: path, array: n.Kind == unstable.ArrayTable || d.belowArray(path)}
		t.start, t.end = d.lines(first, last)
		d.tables = append(d.tables, t)
	case unstable.KeyValue:
		in := len(d.tables) - 1
		kv := keyValue{path: slices.Concat(d.tables[in].path, path), table: in, keyEnd: last, text: first}
		end := int(n.Raw.Offset + n.Raw.Length)
		kv.valueStart = last + bytes.IndexByte(d.data[last:end], '=') + 1
		kv.valueStart += len(d.data[kv.valueStart:end]) - len(bytes.TrimLeft(d.data[kv.valueStart:end], " \t"))
		kv.start, kv.end = d.lines(first, end)
		d.keys = append(d.keys, kv)
	}
}

func (d *Document) belowArray(path []string) bool {
	return slices.ContainsFunc(d.tables, func(t table) bool {
		return t.array && len(t.path) <= len(path) && slices.Equal(t.path, path[:len(t.path)])
	})
}

// lines widens a range of bytes to whole lines, their ends included.
func (d *Document) lines(from, to int) (start, end int) {
	start = bytes.LastIndexByte(d.data[:from], '\n') + 1
	if i := bytes.IndexByte(d.data[to:], '\n'); i >= 0 {
		return start, to + i + 1
	}
	return start, len(d.data)
}

// Get returns what the file will say, and whether it will. A table is a
// map[string]any, an array []any.
func (d *Document) Get(path ...string) (any, bool) { return get(d.want, path) }

// Set gives a setting another value: a bool, a number, a string or an array of
// them. One that has it already is left alone. Each is set once.
func (d *Document) Set(value any, path ...string) error {
	if old, ok := get(d.values, path); ok && reflect.DeepEqual(normal(old), normal(value)) {
		return nil
	}
	if err := put(d.want, normal(value), path); err != nil {
		return err
	}
	text, err := encode(value)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(d.keys, func(kv keyValue) bool { return slices.Equal(kv.path, path) && !d.tables[kv.table].array }); i >= 0 {
		kv := d.keys[i]
		d.splices = append(d.splices, splice{kv.start, kv.end, []string{string(d.data[kv.start:kv.keyEnd]) + " = " + text}})
		return nil
	}
	in, key := path[:len(path)-1], path[len(path)-1]
	line := encodeKey(key) + " = " + text
	for i, t := range d.tables {
		if !t.array && slices.Equal(t.path, in) && d.data != nil {
			d.insert(i, line)
			return nil
		}
	}
	if i := slices.IndexFunc(d.added, func(a addition) bool { return !a.array && slices.Equal(a.path, in) }); i >= 0 {
		d.added[i].lines = append(d.added[i].lines, line)
		return nil
	}
	d.added = append(d.added, addition{path: in, lines: []string{line}})
	return nil
}

// insert puts a setting below the header of a table.
func (d *Document) insert(i int, line string) {
	t := d.tables[i]
	indent := ""
	if k := slices.IndexFunc(d.keys, func(kv keyValue) bool { return kv.table == i }); k >= 0 {
		indent = d.indent(d.keys[k].start)
	} else if i > 0 {
		indent = d.indent(t.start) + "  "
	}
	if d.inserted[i] == nil {
		d.inserted[i] = &splice{start: t.end, end: t.end}
	}
	d.inserted[i].lines = append(d.inserted[i].lines, indent+line)
}

func (d *Document) indent(start int) string {
	rest := d.data[start:]
	return string(rest[:len(rest)-len(bytes.TrimLeft(rest, " \t"))])
}

// Pair is a setting of a table that is appended.
type Pair struct {
	Key   string
	Value any
}

// Append adds a table to an array of tables, or makes one.
func (d *Document) Append(pairs []Pair, path ...string) error {
	element := map[string]any{}
	var lines []string
	for _, p := range pairs {
		text, err := encode(p.Value)
		if err != nil {
			return err
		}
		element[p.Key] = normal(p.Value)
		lines = append(lines, encodeKey(p.Key)+" = "+text)
	}
	old, _ := get(d.want, path)
	list, ok := old.([]any)
	if old != nil && !ok {
		return fmt.Errorf("%s is no array of tables: %w", strings.Join(path, "."), ErrForm)
	}
	if err := put(d.want, append(slices.Clone(list), any(element)), path); err != nil {
		return err
	}
	// An array within brackets gets its new element last, too: order counts.
	if i := slices.IndexFunc(d.keys, func(kv keyValue) bool { return slices.Equal(kv.path, path) }); i >= 0 {
		return fmt.Errorf("%s is an array within brackets: %w", strings.Join(path, "."), ErrForm)
	}
	d.added = append(d.added, addition{path: path, array: true, lines: lines})
	return nil
}

// Markers of what was changed, and the flags of the first.
const (
	beginMark = "# >>> thaw"
	endMark   = "# <<< thaw"
	wasMark   = "# was: "

	flagNew   = "[the file was not there]"
	flagNoEOL = "[no end of line before]"
)

// Bytes makes the changes. by says in the file who did it. Without changes it is the file as it was.
func (d *Document) Bytes(by string) ([]byte, error) {
	if reflect.DeepEqual(normal(d.want), normal(d.values)) {
		return slices.Clone(d.data), nil
	}
	splices := slices.Clone(d.splices)
	for _, s := range d.inserted {
		splices = append(splices, *s)
	}
	slices.SortFunc(splices, func(a, b splice) int { return cmp.Or(a.start-b.start, a.end-b.end) }) // what is put before a line comes before its change
	eol := "\n"
	if i := bytes.IndexByte(d.data, '\n'); i > 0 && d.data[i-1] == '\r' {
		eol = "\r\n"
	}
	var out bytes.Buffer
	at := 0
	for _, s := range splices {
		out.Write(d.data[at:s.start])
		writeBlock(&out, d.data[s.start:s.end], s.lines, "", by, eol)
		at = s.end
	}
	out.Write(d.data[at:])
	if len(d.added) > 0 {
		flag := ""
		if d.data == nil {
			flag = flagNew
		}
		writeBlock(&out, nil, d.additions(), flag, by, eol)
	}
	var got map[string]any
	if err := toml.Unmarshal(out.Bytes(), &got); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrForm, syntaxError(err))
	}
	if !reflect.DeepEqual(normal(got), normal(d.want)) {
		return nil, ErrForm
	}
	return out.Bytes(), nil
}

func (d *Document) additions() []string {
	var lines []string
	for i, a := range d.added {
		header := encodePath(a.path)
		switch {
		case len(a.path) == 0:
		case a.array:
			lines = append(lines, "[["+header+"]]")
		default:
			lines = append(lines, "["+header+"]")
		}
		indent := "  "
		if len(a.path) == 0 {
			indent = ""
		}
		for _, l := range a.lines {
			lines = append(lines, indent+l)
		}
		if i < len(d.added)-1 {
			lines = append(lines, "")
		}
	}
	return lines
}

// writeBlock writes lines between marks, in the place of those that were.
func writeBlock(out *bytes.Buffer, was []byte, lines []string, flag, by, eol string) {
	noEOL := len(was) > 0 && was[len(was)-1] != '\n'
	if noEOL {
		flag = flagNoEOL
	}
	if n := out.Len(); len(was) == 0 && n > 0 && out.Bytes()[n-1] != '\n' {
		flag = flagNoEOL
		out.WriteString(eol)
	}
	if flag != "" {
		flag = " " + flag
	}
	indent := ""
	if len(lines) > 0 {
		indent = lines[0][:len(lines[0])-len(strings.TrimLeft(lines[0], " \t"))]
	}
	out.WriteString(indent + beginMark + flag + ": " + by + eol)
	for l := range bytes.Lines(was) {
		out.WriteString(indent + wasMark)
		out.Write(l)
	}
	if noEOL {
		out.WriteString(eol)
	}
	for _, l := range lines {
		out.WriteString(l + eol)
	}
	out.WriteString(indent + endMark)
	out.WriteString(eol)
}

// Edited reports whether a file has changes made by this package.
func Edited(b []byte) bool {
	for l := range bytes.Lines(b) {
		if bytes.HasPrefix(bytes.TrimLeft(l, " \t"), []byte(beginMark)) {
			return true
		}
	}
	return false
}

// Foreign returns lines between marks of b that the file does not have once it is
// changed anew: somebody has put them there.
func Foreign(b, anew []byte) []string {
	have := map[string]bool{}
	for l := range bytes.Lines(anew) {
		have[string(bytes.TrimSpace(l))] = true
	}
	var foreign []string
	within := false
	for l := range bytes.Lines(b) {
		text := bytes.TrimSpace(l)
		switch {
		case bytes.HasPrefix(text, []byte(beginMark)):
			within = true
		case bytes.HasPrefix(text, []byte(endMark)):
			within = false
		case within && len(text) > 0 && !have[string(text)]:
			foreign = append(foreign, string(text))
		}
	}
	return foreign
}

// Undo takes all changes back. there is whether the file was there at all. A
// file without changes comes back as it is; one whose marks were damaged is an
// error that names the line.
func Undo(b []byte) (old []byte, there bool, err error) {
	out := []byte{}
	there = true
	begin, number := 0, 0 // line of the open mark
	var noEOL bool
	for l := range bytes.Lines(b) {
		number++
		text := bytes.TrimLeft(l, " \t")
		switch {
		case bytes.HasPrefix(text, []byte(beginMark)):
			if begin > 0 {
				return nil, false, fmt.Errorf("line %d: a mark of thaw begins within another one, of line %d", number, begin)
			}
			begin = number
			noEOL = bytes.Contains(text, []byte(flagNoEOL))
			if bytes.Contains(text, []byte(flagNew)) {
				there = false
			}
		case bytes.HasPrefix(text, []byte(endMark)):
			if begin == 0 {
				return nil, false, fmt.Errorf("line %d: a mark of thaw ends that did not begin", number)
			}
			begin = 0
			if noEOL {
				out = bytes.TrimSuffix(out, []byte("\n"))
				if bytes.HasSuffix(l, []byte("\r\n")) {
					out = bytes.TrimSuffix(out, []byte("\r"))
				}
			}
		case begin == 0:
			out = append(out, l...)
		case bytes.HasPrefix(text, []byte(wasMark)):
			out = append(out, text[len(wasMark):]...)
		}
	}
	if begin > 0 {
		return nil, false, fmt.Errorf("line %d: a mark of thaw begins here and does not end", begin)
	}
	if !there && len(bytes.TrimSpace(out)) == 0 {
		return nil, false, nil
	}
	return out, true, nil
}

var bare = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func encodeKey(key string) string {
	if bare.MatchString(key) {
		return key
	}
	b, err := toml.Marshal(map[string]any{"k": key})
	if err != nil {
		return "''" // a string can always be written
	}
	return strings.TrimSpace(strings.TrimPrefix(string(b), "k = "))
}

func encodePath(path []string) string {
	quoted := make([]string, len(path))
	for i, key := range path {
		quoted[i] = encodeKey(key)
	}
	return strings.Join(quoted, ".")
}

// encode writes a value on one line.
func encode(value any) (string, error) {
	b, err := toml.Marshal(map[string]any{"v": value})
	if err != nil {
		return "", fmt.Errorf("write %v: %w", value, err)
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "v = ")
	if !ok || strings.Contains(text, "\n") {
		return "", fmt.Errorf("write %v: not on one line: %w", value, ErrForm)
	}
	return text, nil
}

func get(m map[string]any, path []string) (any, bool) {
	var v any = m
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[key]; !ok {
			return nil, false
		}
	}
	return v, true
}

// put sets a value in a tree of tables, making what is missing.
func put(m map[string]any, value any, path []string) error {
	for _, key := range path[:len(path)-1] {
		next, ok := m[key]
		if !ok {
			next = map[string]any{}
			m[key] = next
		}
		if m, ok = next.(map[string]any); !ok {
			return fmt.Errorf("%s is no table: %w", strings.Join(path[:len(path)-1], "."), ErrForm)
		}
	}
	m[path[len(path)-1]] = value
	return nil
}

func clone(m map[string]any) map[string]any {
	m = maps.Clone(m)
	for k, v := range m {
		if t, ok := v.(map[string]any); ok {
			m[k] = clone(t)
		}
	}
	return m
}

// normal makes values comparable: what is read and what is set may have other
// Go types for the same TOML.
func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = normal(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = normal(e)
		}
		return out
	case []string:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = e
		}
		return out
	case int:
		return int64(v)
	}
	return v
}
