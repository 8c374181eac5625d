package parquet

import (
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// column numbers a leaf of the schema, in the order of the SQL contract.
type column int

const (
	colTime column = iota
	colDevice
	colSensor
	colValue
	colScore
	colReceived
	colQuality
	columns // how many there are
)

const (
	// pageRows is the unit of reading: a page of every column starts at the same
	// row. 16 Ki rows decode in about 200 us.
	pageRows = 16 << 10
	// pageRowsMax is how far a page goes on to the end of its last device, so that it
	// holds the same times under all of its sensors, where a compressor finds them:
	// files of long series are a fifth to a third smaller, and a device is on one page
	// instead of two. A device with more rows is cut at pageRows.
	pageRowsMax = 64 << 10

	// groupRows and groupDevices end a row group. Dictionaries belong to a row
	// group and are read whole, so their size is what is bounded here: 16 Ki ids
	// of 20 bytes are 320 KiB.
	groupRows    = 512 << 10
	groupDevices = 16 << 10

	// numberDictMax bounds the dictionaries of values and scores (256 KiB); with
	// more distinct numbers in a row group they are written plain.
	numberDictMax = 32 << 10
)

// columnNames are the names of the SQL contract.
func columnNames() [columns]string {
	return [columns]string{"time", "device_id", "sensor", "value", "score", "received", "quality"}
}

func physicalTypes() [columns]format.Type {
	return [columns]format.Type{format.Int64, format.ByteArray, format.ByteArray, format.Double, format.Float, format.Int64, format.Int32}
}

// schemaElements describes the columns with standard logical types: timestamps
// are microseconds adjusted to UTC, ids are UTF-8 strings, quality is a smallint.
func schemaElements() thrift.Slice[format.SchemaElement] {
	timestamp := func(e *format.SchemaElement) {
		e.ConvertedType = thrift.New(deprecated.TimestampMicros)
		e.LogicalType.Value = &format.TimestampType{IsAdjustedToUTC: true, Unit: format.TimeUnit{Value: &format.MicroSeconds{}}}
	}
	text := func(e *format.SchemaElement) {
		e.ConvertedType = thrift.New(deprecated.UTF8)
		e.LogicalType.Value = &format.StringType{}
	}
	small := func(e *format.SchemaElement) {
		e.ConvertedType = thrift.New(deprecated.Int16)
		e.LogicalType.Value = &format.IntType{BitWidth: 16, IsSigned: true}
	}
	logical := [columns]func(*format.SchemaElement){
		colTime: timestamp, colDevice: text, colSensor: text, colReceived: timestamp, colQuality: small,
	}
	names, types := columnNames(), physicalTypes()
	elements := thrift.Slice[format.SchemaElement]{{Name: "telemetry", NumChildren: thrift.New(int32(columns))}}
	for c := range columns {
		e := format.SchemaElement{
			Name:           names[c],
			Type:           thrift.New(types[c]),
			RepetitionType: thrift.New(format.Required),
			FieldID:        int32(c) + 1,
		}
		if logical[c] != nil {
			logical[c](&e)
		}
		elements = append(elements, e)
	}
	return elements
}

func columnOrders() thrift.Slice[format.ColumnOrder] {
	orders := make(thrift.Slice[format.ColumnOrder], columns)
	for i := range orders {
		orders[i].Value = &format.TypeDefinedOrder{}
	}
	return orders
}

func sortingColumns() thrift.Slice[format.SortingColumn] {
	return thrift.Slice[format.SortingColumn]{
		{ColumnIdx: int32(colDevice)}, {ColumnIdx: int32(colSensor)}, {ColumnIdx: int32(colTime)},
	}
}
