package server

import (
	"cmp"

	"accessbroker.internal/audit"
)

func supplierOf(r *audit.Record) string {
	if r.Supplier == nil {
		return "an unknown supplier"
	}
	text := "supplier " + cmp.Or(r.Supplier.Name, "of unknown name")
	if !r.Supplier.Until.IsZero() {
		text += " until " + r.Supplier.Until.UTC().Format("2006-01-02 15:04 UTC")
	}
	return text
}

func sayAssessed(r *audit.Record) string {
	if r.Supplier == nil {
		return by(r) + " assessed a supplier."
	}
	return by(r) + " assessed supplier " + r.Supplier.Name + " as a risk of " + cmp.Or(r.Supplier.Risk, "unknown tier") + ", valid until " + r.Supplier.Until.UTC().Format("2006-01-02 15:04 UTC") + "."
}

func saySupplierEnding(r *audit.Record) string {
	return "The sponsor was notified that the contract with " + supplierOf(r) + " ends soon."
}
