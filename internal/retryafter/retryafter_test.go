package retryafter

import (
	"net/http"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const date = "Mon, 23 Nov 2026 12:00:00 GMT" // of the server, whose clock may be wrong
	for name, test := range map[string]struct {
		value string
		want  time.Duration
	}{
		"none":             {"", 0},
		"seconds":          {"7", 7 * time.Second},
		"zero":             {"0", 0},
		"negative":         {"-7", 0},
		"fraction":         {"1.5", 0},
		"words":            {"soon", 0},
		"too long":         {"86400", Max},
		"largest number":   {"18446744073709551615", Max},
		"larger":           {"99999999999999999999", 0},
		"date":             {"Mon, 23 Nov 2026 12:01:30 GMT", 90 * time.Second},
		"old form of date": {"Monday, 23-Nov-26 12:01:30 GMT", 90 * time.Second},
		"same date":        {date, 0},
		"past":             {"Mon, 23 Nov 2026 11:00:00 GMT", 0},
		"far date":         {"Tue, 23 Nov 2027 12:00:00 GMT", Max},
	} {
		h := http.Header{"Retry-After": {test.value}, "Date": {date}}
		if got := Parse(h); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
	soon := http.Header{"Retry-After": {time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)}}
	if got := Parse(soon); got < 50*time.Second || got > time.Minute {
		t.Errorf("a date without the server's clock: got %s, want about a minute", got)
	}
}
