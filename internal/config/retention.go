package config

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/broker"
)

// retentionFile is how long what has ended is kept. Without a key, it is kept for good.
type retentionFile struct {
	Requests *period `yaml:"requests"`
	Leases   *period `yaml:"leases"`
	Texts    *period `yaml:"texts"`
}

// A period is a number of days, such as "400d", or a duration.
type period time.Duration

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (p *period) UnmarshalYAML(node ast.Node) error {
	if days, ok := strings.CutSuffix(node.GetToken().Value, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 && strconv.FormatUint(n, 10) == days {
			*p = period(n) * period(24*time.Hour)
			return nil
		}
	} else if (*duration)(p).UnmarshalYAML(node) == nil {
		return nil
	}
	return &yaml.SyntaxError{Message: `a period is a number of days, such as "400d", or of hours, such as "9600h"`, Token: node.GetToken()}
}

func (p *period) value() time.Duration {
	if p == nil {
		return 0
	}
	return time.Duration(*p)
}

const longestRetention = 100 * 365 * 24 * time.Hour

func (c *checker) retention() {
	f := c.d.file.Retention
	k := broker.Retention{Requests: f.Requests.value(), Leases: f.Leases.value(), Texts: f.Texts.value()}
	for _, one := range []struct {
		key   string
		kept  time.Duration
		least time.Duration
		why   string
	}{
		{"requests", k.Requests, broker.MinRetention, "approvers see what a requester did in the last 30 days"},
		{"leases", k.Leases, broker.MinRetention, "approvers see what a requester did in the last 30 days"},
		{"texts", k.Texts, broker.MinTextRetention, "people look into what happened in the last days"},
	} {
		if one.kept != 0 && (one.kept < one.least || one.kept > longestRetention) {
			c.report("retention/"+one.key, "must be at least %s (%s) and at most %s; omit it to keep them for good", broker.Days(one.least), one.why, broker.Days(longestRetention))
		}
	}
	switch {
	case k.Requests == 0:
	case k.Leases > k.Requests:
		c.report("retention/leases", "must not be longer than requests (%s): a lease refers to its request", broker.Days(k.Requests))
	case k.Texts > k.Requests:
		c.report("retention/texts", "must not be longer than requests (%s), which have the texts", broker.Days(k.Requests))
	}
	if k.Requests != 0 {
		k.Leases = cmp.Or(k.Leases, k.Requests)
	}
	c.cfg.Retention = k
}
