package evidence

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxPeriod bounds the period of a report.
const maxPeriod = 10 * 366 * 24 * time.Hour

// DefaultSince is the usual length of a period.
const DefaultSince = "90d"

// Period returns the period of a report as of now. since is the length, such as 90d or
// 12h; from and to replace its ends. The period has whole seconds, so that it can be
// written down, and includes now.
func Period(since string, from, to, now time.Time) (Query, error) {
	if to.IsZero() {
		to = now.UTC().Truncate(time.Second).Add(time.Second)
	}
	if from.IsZero() {
		if since == "" {
			since = DefaultSince
		}
		length, err := parseLength(since)
		if err != nil {
			return Query{}, err
		}
		from = to.Add(-length)
	} else if since != "" {
		return Query{}, fmt.Errorf("a period has a length (since) or a start (from), not both")
	}
	switch {
	case !from.Before(to):
		return Query{}, fmt.Errorf("the period must start before it ends")
	case to.Sub(from) > maxPeriod:
		return Query{}, fmt.Errorf("the period may have at most 10 years")
	case from.Nanosecond() != 0 || to.Nanosecond() != 0:
		return Query{}, fmt.Errorf("the period starts and ends at whole seconds")
	}
	return Query{From: from.UTC(), To: to.UTC()}, nil
}

// parseLength parses a number of days, such as 90d, or a duration of Go.
func parseLength(text string) (time.Duration, error) {
	length, err := time.ParseDuration(text)
	if days, found := strings.CutSuffix(text, "d"); found {
		var n int64
		n, err = strconv.ParseInt(days, 10, 32)
		length = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || length < time.Second || length > maxPeriod {
		return 0, fmt.Errorf("the length of a period is a number of days such as 90d, or hours such as 12h, up to 10 years")
	}
	return length.Truncate(time.Second), nil
}
