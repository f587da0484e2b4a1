package broker

import (
	"testing"
	"time"
)

func TestShort(t *testing.T) {
	for text, want := range map[string]string{
		"15m": "15m", "1h": "1h", "1h30m": "1h30m", "1h0m5s": "1h0m5s", "10s": "10s", "100ms": "100ms", "0s": "0s", "720h": "720h", "1m10s": "1m10s", "10h20m": "10h20m", "-1m": "-1m",
	} {
		d, err := time.ParseDuration(text)
		if got := FormatDuration(d); err != nil || got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
