// Package waterfall draws a measured start as an SVG picture, as systemd-analyze plot
// does a boot: a bar for each phase, process, package and first request, with the times
// in which it waited for bytes marked in them.
//
// The picture stands for itself: no script, no font and nothing else from elsewhere, and
// colours for light and dark by what the reader prefers. Kinds differ in lightness and
// outline, not in colour alone.
package waterfall

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/thaw-project/thaw/internal/profile"
)

// Options are what is drawn of a run.
type Options struct {
	Title    string
	Subtitle string
	Packages int // at most so many, the longest of each phase; negative: none
}

// bar is a row of the picture.
type bar struct {
	label, note, class string
	start, end         float64
	waits              [][2]float64
}

// Sizes in pixels.
const (
	labelWidth = 250
	plotWidth  = 900
	noteWidth  = 170
	rowHeight  = 22
	barHeight  = 14
	top        = 78
	maxLabel   = 34
)

// Bounds of what is drawn.
const (
	maxWaits     = 600
	maxProcesses = 200
	maxRequests  = 50
)

const style = `
:root{color-scheme:light dark}
svg{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;background:#fff}
text{fill:#1c2430}.dim{fill:#5b6675}.grid{stroke:#dfe3e8;stroke-width:1}.event{stroke:#5b6675;stroke-width:1;stroke-dasharray:3 3}
h1,.title{font-size:17px;font-weight:600}
.phase{fill:#0b6fb8}.package{fill:#8cc3e8;stroke:#0b6fb8}.process{fill:#cfd5dc;stroke:#5b6675}.request{fill:#e3a33b;stroke:#8a5a00}
.wait{fill:#c2371f}.unknown{fill:none;stroke:#5b6675;stroke-dasharray:4 3}
@media (prefers-color-scheme:dark){svg{background:#12161c}text{fill:#e6e9ee}.dim{fill:#9aa5b4}.grid{stroke:#2a323d}.event{stroke:#9aa5b4}
.phase{fill:#4ea3e0}.package{fill:#1d4668;stroke:#4ea3e0}.process{fill:#39424e;stroke:#9aa5b4}.request{fill:#8a5f14;stroke:#e3a33b}.wait{fill:#ff7a5c}.unknown{stroke:#9aa5b4}}
@media print{svg{background:#fff}}
`

// Draw writes the picture of a run of a subject.
func Draw(w io.Writer, s *profile.Subject, r *profile.Run, o Options) error {
	bars := rows(s, r, o.Packages)
	from, to := bounds(r, bars)
	scale := func(ms float64) float64 { return labelWidth + (ms-from)/(to-from)*plotWidth }
	height := top + len(bars)*rowHeight + 66
	width := labelWidth + plotWidth + noteWidth
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="t d">`, width, height, width, height)
	fmt.Fprintf(&b, "\n<title id=\"t\">%s</title>\n<desc id=\"d\">%s</desc>\n<style>%s</style>\n", text(o.Title), text(describe(r)), style)
	fmt.Fprintf(&b, "<text class=\"title\" x=\"12\" y=\"26\">%s</text>\n<text class=\"dim\" x=\"12\" y=\"46\">%s</text>\n", text(o.Title), text(o.Subtitle))
	bottom := top + len(bars)*rowHeight
	for ms := math.Ceil(from/step(to-from)) * step(to-from); ms <= to; ms += step(to - from) {
		x := scale(ms)
		fmt.Fprintf(&b, "<line class=\"grid\" x1=\"%s\" y1=\"%d\" x2=\"%s\" y2=\"%d\"/><text class=\"dim\" x=\"%s\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
			px(x), top-4, px(x), bottom, px(x), top-8, text(duration(ms)))
	}
	for i, one := range bars {
		draw(&b, &one, top+i*rowHeight, scale, to)
	}
	events(&b, r, scale, bottom)
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}

// rows are the bars of a run: phases in their order, with what belongs to each right
// below.
func rows(s *profile.Subject, r *profile.Run, packages int) []bar {
	if packages == 0 {
		packages = 8
	}
	first := firstReads(s, r)
	waited := profile.WaitTimes(r.Waits, maxWaits)
	var out []bar
	for _, name := range profile.Phases {
		p := r.Phase(name)
		if p == nil {
			continue
		}
		switch {
		case p.Ms == nil:
			out = append(out, bar{label: name, note: "unknown: " + p.Reason, class: "unknown", start: math.NaN()})
			continue
		case p.StartMs != nil && p.EndMs != nil:
			out = append(out, bar{label: name, note: duration(*p.Ms), class: "phase", start: *p.StartMs, end: *p.EndMs})
			if name != profile.PhaseHydration { // for which nobody waits
				out[len(out)-1].waits = within(waited, *p.StartMs, *p.EndMs)
			}
		}
		shown, begin := 0, len(out)
		for _, k := range r.Packages {
			if k.Phase != name || shown >= packages {
				continue
			}
			start, ok := first[[2]string{k.Name, name}]
			if !ok {
				continue
			}
			shown++
			out = append(out, bar{label: "  " + k.Name, note: duration(k.Ms) + ", " + files(k.Files), class: "package", start: start, end: start + k.Ms})
		}
		slices.SortStableFunc(out[begin:], func(a, b bar) int { return cmp.Compare(a.start, b.start) })
	}
	for _, p := range r.Processes[:min(len(r.Processes), maxProcesses)] {
		end, note := math.Inf(1), "runs on"
		if p.EndMs != nil {
			end, note = *p.EndMs, duration(*p.EndMs-p.StartMs)
		}
		out = append(out, bar{label: fmt.Sprintf("%s [%d]", p.Command, p.Pid), note: note, class: "process", start: p.StartMs, end: end})
	}
	requests := 0
	for _, q := range r.Requests {
		if q.N == 1 && requests < maxRequests {
			requests++
			out = append(out, bar{label: "1st " + q.Route, note: duration(q.EndMs - q.StartMs), class: "request", start: q.StartMs, end: q.EndMs, waits: within(waited, q.StartMs, q.EndMs)})
		}
	}
	return out
}

func files(n int) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}

// firstReads is when something of a package was first read, by package and phase.
func firstReads(s *profile.Subject, r *profile.Run) map[[2]string]float64 {
	packages := map[string]string{}
	for i := range s.Files {
		packages[s.Files[i].Path] = s.Files[i].Package
	}
	first := map[[2]string]float64{}
	for i := range r.Reads {
		key := [2]string{packages[r.Reads[i].Path], r.Reads[i].Phase}
		if _, ok := first[key]; !ok {
			first[key] = r.Reads[i].AtMs
		}
	}
	return first
}

// within are those waits that are in a time, as far as they are.
func within(waits [][2]float64, from, to float64) [][2]float64 {
	var out [][2]float64
	for _, w := range waits {
		if w[1] > from && w[0] < to {
			out = append(out, [2]float64{max(w[0], from), min(w[1], to)})
		}
	}
	return out
}

// bounds is the time that is drawn.
func bounds(r *profile.Run, bars []bar) (from, to float64) {
	for _, e := range r.Events {
		from, to = min(from, e.AtMs), max(to, e.AtMs)
	}
	for _, b := range bars {
		if !math.IsNaN(b.start) {
			from, to = min(from, b.start), max(to, b.start)
		}
		if !math.IsInf(b.end, 1) {
			to = max(to, b.end)
		}
	}
	if to-from < 1 {
		to = from + 1
	}
	return from, to
}

func draw(b *bytes.Buffer, one *bar, y int, scale func(float64) float64, to float64) {
	label := one.label
	if runes := []rune(label); len(runes) > maxLabel {
		label = string(runes[:maxLabel-1]) + "…"
	}
	fmt.Fprintf(b, `<g><title>%s: %s</title><text x="%d" y="%d" text-anchor="end" xml:space="preserve">%s</text>`, text(strings.TrimSpace(one.label)), text(one.note), labelWidth-10, y+barHeight-2, text(label))
	if math.IsNaN(one.start) {
		fmt.Fprintf(b, `<rect class="unknown" x="%d" y="%d" width="60" height="%d" rx="2"/><text class="dim" x="%d" y="%d">%s</text></g>`+"\n", labelWidth, y, barHeight, labelWidth+68, y+barHeight-2, text(one.note))
		return
	}
	x, end := scale(one.start), scale(min(one.end, to))
	fmt.Fprintf(b, `<rect class="%s" x="%s" y="%d" width="%s" height="%d" rx="2"/>`, one.class, px(x), y, px(max(end-x, 1)), barHeight)
	for _, w := range one.waits {
		fmt.Fprintf(b, `<rect class="wait" x="%s" y="%d" width="%s" height="5"/>`, px(scale(w[0])), y+barHeight-5, px(max(scale(w[1])-scale(w[0]), 0.5)))
	}
	fmt.Fprintf(b, `<text class="dim" x="%s" y="%d">%s</text></g>`+"\n", px(end+6), y+barHeight-2, text(one.note))
}

// marked are the events that are drawn as lines, the most important first.
var marked = []string{profile.EventReady, profile.EventStarted, profile.EventHealthy, profile.EventListen, profile.EventHydrated}

// textLines is on how many lines below the bars they are named.
const textLines = 3

// events are lines through all bars, of those that a start is known by.
func events(b *bytes.Buffer, r *profile.Run, scale func(float64) float64, bottom int) {
	var taken [textLines][][2]float64
	for _, name := range marked {
		e := r.Event(name)
		if e == nil {
			continue
		}
		x, label := scale(e.AtMs), name+" @"+duration(e.AtMs)
		fmt.Fprintf(b, `<line class="event" x1="%s" y1="%d" x2="%s" y2="%d"><title>%s</title></line>`, px(x), top-4, px(x), bottom+4, text(label))
		half := float64(len(label)) * 3.4
		for line := range taken {
			if slices.ContainsFunc(taken[line], func(s [2]float64) bool { return x-half < s[1] && x+half > s[0] }) {
				continue
			}
			taken[line] = append(taken[line], [2]float64{x - half, x + half})
			fmt.Fprintf(b, `<text class="dim" x="%s" y="%d" text-anchor="middle">%s</text>`, px(x), bottom+18+line*14, text(label))
			break
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(b, `<rect class="wait" x="12" y="%d" width="14" height="5"/><text class="dim" x="32" y="%d">waited for bytes</text>`+"\n", bottom+49, bottom+56)
}

// describe says in a sentence what is drawn, for those who cannot see it.
func describe(r *profile.Run) string {
	var parts []string
	for _, name := range profile.Phases[:profile.StartPhases] {
		if p := r.Phase(name); p != nil && p.Ms != nil {
			parts = append(parts, name+" "+duration(*p.Ms))
		}
	}
	s := "Phases of a start: " + strings.Join(parts, ", ")
	if r.TotalMs != nil {
		s += ". Ready after " + duration(*r.TotalMs)
	}
	return s + "."
}

// step is the distance of the grid's lines: 1, 2 or 5 times a power of ten, for about
// ten of them.
func step(length float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(length/10)))
	for _, m := range []float64{1, 2, 5} {
		if length/(m*power) <= 12 {
			return m * power
		}
	}
	return 10 * power
}

// duration is a time as people read it; where whole ones stand at a grid, without
// zeros.
func duration(ms float64) string {
	switch abs := math.Abs(ms); {
	case abs < 99.95:
		return strconv.FormatFloat(math.Round(ms*10)/10, 'f', -1, 64) + "ms"
	case abs < 999.5:
		return strconv.FormatFloat(ms, 'f', 0, 64) + "ms"
	}
	return strconv.FormatFloat(math.Round(ms)/1000, 'f', -1, 64) + "s"
}

func px(x float64) string { return strconv.FormatFloat(x, 'f', 1, 64) }

// text is a text in XML: escaped, without what XML may not have.
func text(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0xFFFE || r == 0xFFFF {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return html.EscapeString(s)
}
