package broker

import (
	"strings"
	"time"
)

// Short writes a duration for people, as they would: "15m" where time.Duration
// says "15m0s". It is how api.Duration writes one on the wire.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
