package attach

import (
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources"
)

// Record makes a record of starts: one subject an image and snapshotter.
func Record(starts []*Started, ready string) *profile.Record {
	var g sources.Grouped
	common := sources.Common{}
	var signals []profile.Signal
	for _, s := range starts {
		subject := profile.Subject{Name: s.Image, Image: s.Image, Probe: ready}
		if s.Snapshotter != "" {
			subject.Mode = "containerd/" + s.Snapshotter
			subject.Name += " (" + s.Snapshotter + ")"
		}
		common.Note("namespace", s.Namespace)
		common.Note("service", s.Service)
		to := g.Subject(s.Image+"\x00"+s.Snapshotter, subject)
		to.Runs = append(to.Runs, s.Run)
		signals = merge(signals, s.Signals)
	}
	r := g.Record(profile.SourceAttach)
	r.Labels, r.Signals = common.Labels(), signals
	return r
}

// merge adds a start's signals; what was worse in one counts.
func merge(all, some []profile.Signal) []profile.Signal {
	for _, s := range some {
		known := false
		for i := range all {
			if all[i].Name == s.Name {
				known = true
				if all[i].Reason == "" || all[i].Used && !s.Used {
					all[i] = s
				}
			}
		}
		if !known {
			all = append(all, s)
		}
	}
	return all
}
