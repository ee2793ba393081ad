package main

import (
	"fmt"

	"example.com/owner/lib"
)

func main() {
	fmt.Println("hello", lib.Double(21))
}
