package kubernetes

import (
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources"
)

// chain is what happened one after the other, each at a time that was cut to its
// precision: it was then or up to that much later.
type chain struct{ links []link }

type link struct {
	name   string
	moment moment
	detail string
	exact  bool // it was exactly after the one before:
	after  time.Duration
}

func (c *chain) add(name string, at moment, detail string) {
	if !at.IsZero() {
		c.links = append(c.links, link{name: name, moment: at, detail: detail})
	}
}

func (l *link) point() sources.Point {
	return sources.Point{Name: l.name, At: l.moment.Time, Source: profile.SignalKubernetes, Detail: l.detail, Precision: l.moment.precision}
}

// settle puts each as early as it can have been: not before its time, nor before the
// one before it. Cut times of quick starts would else contradict what is known exactly:
// pulled in 2.9 s from 10.0 on, and started, cut to the second, at 12. Where they
// contradict each other by more, clocks differ: all are left as they are.
func (c *chain) settle() {
	links := slices.Clone(c.links)
	for i := range links {
		if l := &links[i]; i > 0 && l.exact {
			if from := l.moment.Add(-l.after); from.After(links[i-1].moment.Time) && !links[i-1].put(from) {
				return
			}
		}
	}
	for i := 1; i < len(links); i++ {
		l, before := &links[i], links[i-1].moment.Time
		if l.exact {
			if !l.put(before.Add(l.after)) {
				return
			}
			continue
		}
		if before.After(l.moment.Time) && !l.put(before) {
			return
		}
	}
	c.links = links
}

// put moves it, if it can have been then.
func (l *link) put(at time.Time) bool {
	if d := at.Sub(l.moment.Time); d < 0 || d > l.moment.precision {
		return false
	}
	l.moment.Time = at
	return true
}
