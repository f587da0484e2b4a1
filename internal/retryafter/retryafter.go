// Package retryafter reads the Retry-After header of HTTP answers.
package retryafter

import (
	"net/http"
	"strconv"
	"time"
)

// Max bounds what Parse returns. Whatever made a server unavailable may have changed
// by then.
const Max = time.Hour

// Parse returns the time to wait that an answer names in its Retry-After (RFC 9110,
// section 10.2.3). It is zero without the header, or if its date has passed. A date counts by the
// clock of the server that wrote it.
func Parse(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(Max/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(at.Sub(now), 0), Max)
}
