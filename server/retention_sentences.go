package server

import (
	"fmt"
	"time"

	"accessbroker.internal/audit"
)

func sayPruned(r *audit.Record) string {
	p := r.Pruned
	if p == nil {
		return "The broker pruned rows."
	}
	switch date := p.Before.UTC().Format(time.DateOnly); p.What {
	case audit.PrunedTexts:
		return fmt.Sprintf("The broker erased the texts of %s of what had ended before %s; their hashes remain.", plural(int(p.Rows), "record", "records"), date)
	case audit.PrunedLeases:
		return fmt.Sprintf("The broker deleted %s that had ended before %s; their records remain.", plural(int(p.Rows), "lease", "leases"), date)
	default:
		return fmt.Sprintf("The broker deleted %s that had ended before %s; their records remain.", plural(int(p.Rows), "request", "requests"), date)
	}
}

func (f *fielder) pruned(p *audit.PrunedFacts) {
	if p == nil {
		return
	}
	f.group("Retention")
	f.text("Pruned", p.What)
	f.text("Number", fmt.Sprint(p.Rows))
	f.time("Ended before", p.Before)
	f.time("The oldest is from", p.From)
	f.time("The newest is from", p.Until)
}
