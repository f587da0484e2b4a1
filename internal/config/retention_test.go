package config

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// Retention is off by default, and never shorter than what others need.
func TestRetention(t *testing.T) {
	dir := sealedDir(t)
	const day = 24 * time.Hour
	for text, want := range map[string]any{
		"":                                  broker.Retention{},
		"{}":                                broker.Retention{},
		"{requests: 400d}":                  broker.Retention{Requests: 400 * day, Leases: 400 * day},
		"{requests: 9600h, leases: 30d}":    broker.Retention{Requests: 400 * day, Leases: 30 * day},
		"{texts: 7d}":                       broker.Retention{Texts: 7 * day},
		"{leases: 31d, texts: 100d}":        broker.Retention{Leases: 31 * day, Texts: 100 * day},
		"{requests: 29d}":                   "retention.requests: must be at least 30d",
		"{requests: 30d, leases: 719h}":     "retention.leases: must be at least 30d",
		"{texts: 6d}":                       "retention.texts: must be at least 7d",
		"{texts: 65000d}":                   "retention.texts: must be at least 7d",
		"{requests: 30d, leases: 31d}":      "retention.leases: must not be longer than requests (30d)",
		"{requests: 30d, texts: 31d}":       "retention.texts: must not be longer than requests (30d)",
		"{requests: 0d}":                    "a period is a number of days",
		"{requests: 4w}":                    "a period is a number of days",
		"{requests: 0400d}":                 "a period is a number of days",
		"{requests: -30d}":                  "a period is a number of days",
		"{requests: 30.5d}":                 "a period is a number of days",
		"{requests: 99999999999999999999d}": "a period is a number of days",
		"{records: 400d}":                   "records",
	} {
		t.Run(text, func(t *testing.T) {
			file := goodConfig
			if text != "" {
				file += "retention: " + text + "\n"
			}
			c, err := understand(dir, file)
			if message, ok := want.(string); ok {
				if err == nil || !strings.Contains(err.Error(), message) || !strings.Contains(err.Error(), "broker.yaml:") {
					t.Errorf("got %v, want %q with its place", err, message)
				}
				return
			}
			if err != nil || c.Retention != want {
				t.Errorf("got %+v (%v), want %+v", c.Retention, err, want)
			}
		})
	}
}
