package server

import (
	"fmt"
	"strconv"
	"strings"

	"accessbroker.internal/audit"
)

func transmitterOf(r *audit.Record) string {
	if r.Signal == nil || r.Signal.Transmitter == "" {
		return "an unknown transmitter"
	}
	return r.Signal.Transmitter
}

// eventsOf returns the number of a record's events in parentheses.
func eventsOf(r *audit.Record) string {
	switch {
	case r.Signal == nil || r.Signal.Events == 0:
		return ""
	case r.Signal.Events == 1:
		return " (1 event)"
	}
	return fmt.Sprintf(" (%d events)", r.Signal.Events)
}

func saySignalHeld(r *audit.Record) string {
	text := "The security events of " + transmitterOf(r) + " are held until a person decides"
	if r.Signal != nil {
		text += fmt.Sprintf(": within a minute, they would end %d leases and concern %d people", r.Signal.Leases, r.Signal.People)
	}
	return text + "."
}

func (f *fielder) signal(x *audit.SignalFacts) {
	if x == nil {
		return
	}
	f.group("Security event")
	f.text("Transmitter", x.Transmitter)
	f.text("Event", strings.ReplaceAll(x.Event, "_", " "))
	f.digest("SHA-256 of its id", x.ID)
	for _, c := range []struct {
		name string
		n    int64
	}{{"Events", x.Events}, {"Leases that would end", x.Leases}, {"People", x.People}} {
		if c.n > 0 {
			f.text(c.name, strconv.FormatInt(c.n, 10))
		}
	}
}
