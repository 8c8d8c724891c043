package report

import (
	"fmt"

	"github.com/thaw-project/thaw/internal/profile"
)

// headline is what the page says first.
type headline struct {
	Text    string  `json:"text"`
	Biggest string  `json:"biggest,omitempty"` // phase
	SavedMs float64 `json:"saved_ms"`          // that can go, of the median start
}

func newHeadline(v *subjectView) headline {
	var h headline
	runs := v.Count
	if v.Median == nil {
		h.Text = fmt.Sprintf("No start succeeded: %d of %d failed.", v.Failed, runs)
		if runs == 0 {
			h.Text = "There are no runs."
		}
		return h
	}
	biggest, ms := biggestPhase(v.Median)
	h.Biggest = biggest
	if v.Total == nil {
		h.Text = "When it was ready is not known."
		if biggest != "" {
			h.Text += fmt.Sprintf(" Longest known phase: %s, %s.", lower(label(biggest)), showMs(ms))
		}
		return h
	}
	total, most := v.Total.P50, ""
	for _, o := range v.Opportunities {
		if o.Counts {
			h.SavedMs += o.SavedMs
			if o.UpTo {
				most = "Up to "
			}
		}
	}
	h.SavedMs = round(min(h.SavedMs, total))
	if h.SavedMs >= total/50 && h.SavedMs >= 5 {
		h.Text = fmt.Sprintf("%s%s of %s can go.", most, showMs(h.SavedMs), showMs(total))
	} else {
		h.Text = fmt.Sprintf("Ready in %s; nothing measured here says that much of it can go.", showMs(total))
	}
	if biggest != "" {
		h.Text += fmt.Sprintf(" Biggest: %s %s (%s).", lower(label(biggest)), showMs(ms), percent(ms, total))
	}
	if v.Failed > 0 {
		h.Text += fmt.Sprintf(" %d of %d starts failed.", v.Failed, runs)
	}
	return h
}

// biggestPhase is the longest of those that make up a start.
func biggestPhase(r *runView) (name string, ms float64) {
	for _, p := range profile.Phases[:profile.StartPhases] {
		if d, ok := r.ms(p); ok && d > ms {
			name, ms = p, d
		}
	}
	return name, ms
}

// lower is a label within a sentence.
func lower(label string) string {
	if label == "" {
		return ""
	}
	return string(label[0]|0x20) + label[1:]
}
