package server

import (
	"strconv"
	"strings"

	"accessbroker.internal/audit"
)

// What records of a recovery state: what is done after a restore to an earlier time.

func sayRecovery(r *audit.Record) string {
	if r.Recovery == nil {
		return "Records are lost, and what they recorded is searched for."
	}
	return "Records after " + r.Recovery.Since.UTC().Format("2006-01-02 15:04:05Z") + " are lost: " + strconv.FormatInt(r.Recovery.Sessions, 10) + " sessions were ended, and the issuers are searched for credentials that were issued since."
}

func sayFound(r *audit.Record) string {
	if r.Recovery == nil {
		return "A credential without records was found."
	}
	what := "A credential"
	if r.Lease != nil {
		what = "The credential of the lease " + r.Lease.ID
	}
	text := what + ", whose records are lost, was found at the issuer " + r.Recovery.Issuer
	switch r.Recovery.Outcome {
	case "revoked":
		return text + " and revoked."
	case "accepted":
		return text + ". The issuer accepted the revocation, and does not confirm it."
	}
	return text + ". It can't be ended early."
}

func sayRecovered(r *audit.Record) string {
	if r.Recovery == nil {
		return "The search for credentials without records is complete."
	}
	return "The search for credentials without records is complete: " + strconv.FormatInt(r.Recovery.Found, 10) + " found, " + strconv.FormatInt(r.Recovery.Ended, 10) + " ended."
}

func (f *fielder) recovery(r *audit.RecoveryFacts) {
	if r == nil {
		return
	}
	f.group("Recovery after a restore")
	f.text("Issuer", r.Issuer)
	f.text("What was found", r.Target)
	f.text("Outcome", strings.ReplaceAll(r.Outcome, "_", " "))
	f.time("Records are lost since", r.Since)
	f.time("Records are lost until", r.Until)
	f.some("Sessions ended", r.Sessions)
	f.some("Credentials found", r.Found)
	f.some("Credentials ended", r.Ended)
}

// some adds a number that is not zero.
func (f *fielder) some(name string, n int64) {
	if n != 0 {
		f.text(name, strconv.FormatInt(n, 10))
	}
}
