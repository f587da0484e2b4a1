package verify

import (
	"net/http"
	"testing"
	"time"
)

// The issuer decides how long its documents are kept, within bounds.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":                             usualKept,
		"public, max-age=300":          5 * time.Minute,
		"max-age=600, must-revalidate": 10 * time.Minute,
		"MAX-AGE=600":                  10 * time.Minute,
		`max-age="600"`:                10 * time.Minute,
		"max-age=0":                    leastKept,
		"no-store":                     leastKept,
		"no-cache, max-age=600":        leastKept,
		"max-age=31536000":             mostKept,
		"max-age=99999999999999999999": usualKept,
		"max-age=-1":                   usualKept,
		"s-maxage=7":                   usualKept,
	} {
		r := &response{header: http.Header{"Cache-Control": {header}}}
		if got := r.maxAge(leastKept, usualKept, mostKept); got != want {
			t.Errorf("%q: got %s, want %s", header, got, want)
		}
	}
}
