package emit

import (
	"fmt"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// dict is an object of a dashboard's JSON.
type dict = map[string]any

// rateWindow is Grafana's: as long as the panel's interval, and a scrape more.
const rateWindow = "$__rate_interval"

// Grafana returns a dashboard for Prometheus' series, with the threshold as a line.
func Grafana(threshold time.Duration) ([]byte, error) {
	if threshold <= 0 {
		return nil, fmt.Errorf("threshold %v: it has to be more than 0", threshold)
	}
	source := dict{"type": "prometheus", "uid": "${datasource}"}
	var panels []dict
	panel := func(title, description, unit string, x, y, w int, stack bool, targets ...[2]string) dict {
		p := dict{
			"id": len(panels) + 1, "title": title, "description": description, "type": "timeseries", "datasource": source,
			"gridPos": dict{"x": x, "y": y, "w": w, "h": 9},
			// Starts are rare: a rate over seconds has none of them most of the time.
			"interval": "5m",
			"fieldConfig": dict{"defaults": dict{"unit": unit, "min": 0, "custom": dict{"drawStyle": "line", "showPoints": "auto", "spanNulls": false,
				"fillOpacity": 0, "stacking": dict{"mode": "none"}}}, "overrides": []any{}},
			"options": dict{"legend": dict{"displayMode": "list", "placement": "bottom"}, "tooltip": dict{"mode": "multi", "sort": "desc"}},
		}
		if stack {
			custom := p["fieldConfig"].(dict)["defaults"].(dict)["custom"].(dict)
			custom["stacking"], custom["fillOpacity"], custom["drawStyle"] = dict{"mode": "normal", "group": "A"}, 60, "bars"
		}
		var all []dict
		for i, t := range targets {
			all = append(all, dict{"refId": string(rune('A' + i)), "expr": t[0], "legendFormat": t[1], "datasource": source})
		}
		p["targets"] = all
		panels = append(panels, p)
		return p
	}
	service := fmt.Sprintf(`{%s=~"$service"}`, labelService)
	phases := fmt.Sprintf(`{%s=~"$service", %s=~"%s"}`, labelService, labelPhase, strings.Join(stacked(), "|"))
	first := fmt.Sprintf(`{%s=~"$service", %s="%s"}`, labelService, labelPhase, profile.PhaseFirstRequest)
	quantiles := func(series, selector string) (all [][2]string) {
		for _, q := range []struct{ value, name string }{{"0.5", "p50"}, {"0.9", "p90"}, {"0.99", "p99"}} {
			all = append(all, [2]string{quantileOf(q.value, series, selector, rateWindow, labelService), "{{" + labelService + "}} " + q.name})
		}
		return all
	}
	p := panel("Cold start, from requested to ready", "Histograms have buckets: a quantile is right to within its bucket.", "s", 0, 0, 12, false, quantiles(SeriesSeconds, service)...)
	defaults := p["fieldConfig"].(dict)["defaults"].(dict)
	defaults["thresholds"] = dict{"mode": "absolute", "steps": []dict{{"color": "green", "value": nil}, {"color": "red", "value": threshold.Seconds()}}}
	defaults["custom"].(dict)["thresholdsStyle"] = dict{"mode": "line"}
	panel("Cold starts an hour", "", "short", 12, 0, 12, false,
		[2]string{fmt.Sprintf("sum by (%s) (increase(%s%s[1h]))", labelService, SeriesStarts, service), "{{" + labelService + "}}"},
		[2]string{fmt.Sprintf("sum by (%s) (increase(%s%s[1h])) > 0", labelService, SeriesFailures, service), "{{" + labelService + "}} failed"})
	panel("Phases, on average", "Those that follow one another: together they are the whole start, as far as it is known.", "s", 0, 9, 12, true,
		[2]string{meanOf(SeriesPhase, phases, rateWindow, labelPhase), "{{" + labelPhase + "}}"})
	panel("First request, above what later ones take", "Known of starts that were measured with requests.", "s", 12, 9, 12, false, quantiles(SeriesPhase, first)...)
	panel("Cold starts an hour, by how the image came and what of it was there", "L0: nothing. lazy: started before the image was there.", "short", 0, 18, 24, true,
		[2]string{fmt.Sprintf("sum by (%s, %s) (increase(%s%s[1h]))", labelMode, labelCold, SeriesStarts, service), "{{" + labelMode + "}} {{" + labelCold + "}}"})
	return marshalIndent(dict{
		"title": "Cold starts", "uid": "thaw-coldstart", "tags": []string{"thaw", "containers"}, "schemaVersion": 39, "version": 1, "editable": true,
		"timezone": "browser", "refresh": "1m", "time": dict{"from": "now-24h", "to": "now"}, "annotations": dict{"list": []any{}},
		"templating": dict{"list": []dict{
			{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
			{"name": "service", "type": "query", "label": "Service", "datasource": source, "refresh": 2, "includeAll": true, "multi": true, "allValue": ".*",
				"query": dict{"query": fmt.Sprintf("label_values(%s, %s)", SeriesStarts, labelService), "refId": "service"}, "current": dict{"text": "All", "value": "$__all"}},
		}},
		"panels": panels,
	})
}
